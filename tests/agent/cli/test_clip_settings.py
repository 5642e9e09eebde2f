"""[groups] and [labels] of agent.toml: what they may say, and where they apply."""

from pathlib import Path

import pytest
from flamest.agent.cli import AGENT
from flamest.agent.cli.own_settings import own_rules
from flamest.agent.extraction.groups import ClipRules, GroupRule
from flamest.agent.settings import load_agent_settings
from flamest.base.errors import SettingsError

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
