"""[groups] and [labels] of agent.toml: what they may say, and where they apply."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.cli import AGENT
from flamest.agent.cli.extract_options import ExtractOptions
from flamest.agent.cli.main import app
from flamest.agent.cli.own_settings import own_rules
from flamest.agent.cli.prediction import _nothing_read
from flamest.agent.extraction.groups import ClipRules, GroupRule
from flamest.agent.extraction.npz import read_npz
from flamest.agent.extraction.store import FeatureStore
from flamest.agent.settings import load_agent_settings
from flamest.base.errors import SettingsError
from flamest.fedproto.model_file import read_model
from typer.testing import CliRunner

MINIMAL = """
state = "state"
store = "features.sqlite"
[coordinator]
address = "fl.example.org:7443"
ca = "ca.pem"
certificate = "silo.pem"
key = "silo.key"
"""


def settings(folder, text):
    (folder / "agent.toml").write_text(MINIMAL + text, encoding="utf-8")
    return load_agent_settings(folder / "agent.toml")


def test_without_settings_the_defaults_hold(tmp_path):
    loaded = settings(tmp_path, "")
    assert loaded.rules == ClipRules()
    assert loaded.aliases.of("Sturz") == "Sturz"


def test_rules_and_aliases_are_read(tmp_path):
    text = """
[groups]
rule = "pattern"
pattern = '(?P<group>person[0-9]+)'
[labels]
folder = "top"
[labels.alias]
"Sturz" = "fall"
"""
    loaded = settings(tmp_path, text)
    assert loaded.rules == ClipRules(GroupRule("pattern", "(?P<group>person[0-9]+)"), "top")
    assert loaded.aliases.of("Sturz") == "fall"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[groups]\nrule = "persons"', "groups.rule"),
        ('[groups]\nrule = "pattern"', "has no (?P<group>"),
        ("[groups]\nrule = \"pattern\"\npattern = '(?P<group>x'", "is not a regular expression"),
        ("[groups]\npattern = '(?P<group>x)'", 'needs rule = "pattern"'),
        ('[groups]\nrules = "auto"', "unknown key 'rules' in [groups]; known: pattern, rule"),
        ('[labels]\nfolder = "inner"', "labels.folder"),
        ('[labels.alias]\n"Sturz" = ""', "labels.alias"),
        ('[labels.alias]\n"Sturz" = "Fall"\n"Fall" = "fall"', "itself an alias"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, message):
    with pytest.raises(SettingsError) as caught:
        settings(tmp_path, text)
    assert message in caught.value.message


def test_a_command_by_hand_uses_the_daemons_rules(tmp_path, monkeypatch, capsys):
    settings(tmp_path, '[groups]\nrule = "name"')
    text = (tmp_path / "agent.toml").read_text().replace("[coord", 'bundle = "b"\nvideos = "videos"\n[coord')
    (tmp_path / "agent.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    here, elsewhere = AGENT.place(None, None), AGENT.place(None, tmp_path)
    assert own_rules(here, Path("videos")).groups.rule == "name"
    assert own_rules(here, Path("other")).groups.rule == "auto"
    assert own_rules(elsewhere, Path("other")).groups.rule == "name"
    assert capsys.readouterr().out == ""
    own_rules(here, Path("videos"), say_so=True)
    assert "by the rules of" in capsys.readouterr().out
    own_rules(here, Path("other"), say_so=True)
    assert "by the default rules, not by" in (said := capsys.readouterr().out)
    assert "not other; for its rules give --config" in said
    (tmp_path / "agent.toml").unlink()
    assert own_rules(here, Path("videos")).groups.rule == "auto"


def test_a_broken_agent_toml_here_is_an_error(tmp_path, monkeypatch):
    settings(tmp_path, "")
    (tmp_path / "agent.toml").write_text(MINIMAL + '[groups]\nrul = "name"')
    monkeypatch.chdir(tmp_path)
    for place in AGENT.place(None, None), AGENT.place(None, tmp_path):
        with pytest.raises(SettingsError, match=r"agent\.toml.*unknown key 'rul'"):
            own_rules(place, Path("videos"))


def options(**given):
    return ExtractOptions(**{field.name: given.get(field.name) for field in fields(ExtractOptions)})


def test_extract_next_to_agent_toml_has_the_daemons_limits_and_cores(tmp_path, monkeypatch):
    own = 'bundle = "b"\nvideos = "videos"\n' + MINIMAL + "[work]\nclip_timeout = 600\nmax_clip_gb = 2\nthreads = 3"
    (tmp_path / "agent.toml").write_text(own)
    monkeypatch.chdir(tmp_path)
    here = AGENT.place(None, None)
    request = options().request(here, say_so=False)
    assert (request.limits.timeout_s, request.limits.largest_file, request.threads) == (600.0, 2_000_000_000, 3)
    request = options(clip_timeout=5.0, threads=1).request(here, say_so=False)
    assert (request.limits.timeout_s, request.limits.largest_file, request.threads) == (5.0, 2_000_000_000, 1)
    named = {"bundle": Path("b"), "videos": Path("videos"), "store": Path("s.sqlite")}
    request = options(**named).request(here, say_so=False)
    assert (request.limits.timeout_s, request.limits.largest_file, request.threads) == (120.0, 16_000_000_000, None)


def test_train_next_to_agent_toml_learns_the_runs_words(tmp_path, monkeypatch):
    settings(tmp_path, '[labels.alias]\n"Sturz" = "fall"\n"gehen" = "walk"')
    x = np.random.default_rng(0).standard_normal((12, 4)).astype("f4")
    np.savez(tmp_path / "f.npz", x=x, y=np.array(["Sturz", "gehen", "fall"] * 4))
    monkeypatch.chdir(tmp_path)
    with FeatureStore.open(tmp_path / "features.sqlite") as store:
        store.add_rows(read_npz(tmp_path / "f.npz", "own"))
    train = ["train", "--out", "m.safetensors", "--passes", "1", "--hidden", "4", "--threads", "1"]
    for words in [], ["--store", "features.sqlite"]:
        done = CliRunner().invoke(app, [*train, *words])
        assert done.exit_code == 0, done.output
        assert read_model(tmp_path / "m.safetensors").labels == ("fall", "walk")
    (tmp_path / "agent.toml").unlink()
    assert CliRunner().invoke(app, [*train, "--store", "features.sqlite"]).exit_code == 0
    assert read_model(tmp_path / "m.safetensors").labels == ("Sturz", "fall", "gehen")


def test_predict_names_an_option_without_effect_and_a_missing_file(tmp_path):
    (tmp_path / "a.mp4").touch()
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "a.mp4"), "--segments"])
    assert done.exit_code == 2
    assert "--segments: none of these is a folder" in done.stderr
    assert "no such file" in _nothing_read(1, files=0, named=1).fix
    assert "doctor" in _nothing_read(1, files=1, named=1).fix
