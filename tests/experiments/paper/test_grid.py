"""Lists of settings: a row of every combination, no training twice, results of other settings apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flamest.base.errors import UnreachableError, UsageError
from flamest.experiments import cli
from flamest.experiments.paper import extraction
from flamest.experiments.paper.extraction import ExtractionRequest, extract_all
from flamest.experiments.paper.grid import NUMBERS, parse_choices, variants
from flamest.experiments.processes import CommandFailed
from flamest.fedproto.records import Strategy
from typer.testing import CliRunner

QUICK = ("--seeds", "1", "--rounds", "1", "--epochs", "1", "--jobs", "1")


def run(*arguments: object) -> dict:
    done = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"])
    return json.loads(done.stdout.splitlines()[-1])


def test_lists_make_every_combination_with_labels_for_those_with_several():
    choices = parse_choices({"strategies": "fedavg, fedprox:0.1", "beta": "0.1,0.6", "silos": "3", "epochs": None})
    made = variants(choices)
    assert [tuple(variant.labels.values()) for variant in made] == [
        ("FedAvg", "β=0.1"),
        ("FedAvg", "β=0.6"),
        ("FedProx mu=0.1", "β=0.1"),
        ("FedProx mu=0.1", "β=0.6"),
    ]
    assert made[0].values == {"strategies": Strategy(), "beta": 0.1, "silos": 3}


@pytest.mark.parametrize("option", [*NUMBERS])
@pytest.mark.parametrize("text", ["", "x", "0,1", "1,,2", "nan", "inf"])
def test_a_wrong_number_in_a_list_names_the_option(option, text):
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}") as raised:
        parse_choices({option: text})
    assert "," in raised.value.fix


def test_a_grid_prints_one_row_for_each_combination(folder: Path, tmp_path: Path) -> None:
    lists = ("--strategies", "fedavg,fedprox:0.1", "--beta", "0.5,5", "--learning-rate", "0.01")
    printed = run("grid", "--store", folder, "--out", tmp_path / "out", "--silos", "2", *lists, *QUICK)
    assert [row["name"] for row in printed["rows"]] == [
        "BLIP+Slow, FedAvg, β=0.5",
        "BLIP+Slow, FedAvg, β=5",
        "BLIP+Slow, FedProx mu=0.1, β=0.5",
        "BLIP+Slow, FedProx mu=0.1, β=5",
    ]
    assert all(row["last"] is not None for row in printed["rows"])
    assert len((tmp_path / "out" / "grid.csv").read_text().splitlines()) == 5


def test_rows_to_which_a_setting_does_not_matter_are_there_once(folder: Path, tmp_path: Path) -> None:
    lists = ("--strategies", "fedavg,median", "--beta", "0.5,5", "--silos", "2")
    names = [row["name"] for row in run("table5", "--store", folder, "--out", tmp_path / "out", *lists, *QUICK)["rows"]]
    assert len(names) == len(set(names))
    assert [name for name in names if "IID" in name and "Non" not in name and "β" not in name] == [
        "FedAvg, IID",
        "median, IID",
    ]
    assert "FedAvg, Non-IID (β=0.5)" in names
    assert "median, Non-IID (β=5)" in names


@pytest.mark.parametrize("name", ["figure2", "failures", "all"])
def test_a_list_is_refused_where_there_are_no_rows(folder: Path, tmp_path: Path, name) -> None:
    printed = run(name, "--store", folder, "--out", tmp_path / "out", "--beta", "0.1,0.6")
    assert printed["exit_code"] == UsageError.exit_code
    assert "grid" in printed["error"]["fix"]


def test_results_of_other_settings_go_to_a_folder_of_their_own(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ("--store", folder, "--out", out, "--jobs", "1", "--seeds", "1", "--silos", "2")
    first = run("table6", *quick, "--rounds", "1", "--epochs", "1")
    kept = (out / "table6.json").read_bytes()
    other = run("table6", *quick, "--rounds", "2", "--epochs", "1")
    assert first["out"] == str(out)
    assert Path(other["out"]).parent == out
    assert "2-rounds" in Path(other["out"]).name
    assert (out / "table6.json").read_bytes() == kept
    assert json.loads((out / "table6.json").read_text())["title"].endswith("(1 round, 1 epoch, 2 silos, 1 seed)")
    assert "2 rounds" in json.loads((Path(other["out"]) / "table6.json").read_text())["title"]
    again = run("table6", *quick, "--rounds", "2", "--epochs", "1")
    assert again["out"] == other["out"]
    assert len(list((out / "runs").glob("*.json"))) == 10  # five classifiers with each number of rounds


def test_an_experiments_own_settings_do_not_move_its_results(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ("--store", folder, "--out", out, "--jobs", "1", "--seeds", "1", "--silos", "2")
    run("table9", *quick, "--rounds", "1")
    assert run("table6", *quick, "--rounds", "1", "--epochs", "1")["out"] == str(out)
    assert run("table7", *quick, "--rounds", "1")["out"] == str(out)  # it has its own epochs


@pytest.mark.parametrize(
    ("name", "hidden", "shown"),
    [("table3", "--rounds", "--epochs"), ("table7", "--epochs", "--rounds"), ("figure2", "--rounds", "--seeds")],
)
def test_help_offers_no_option_that_is_refused(name, hidden, shown):
    text = " ".join(CliRunner().invoke(cli.app, [name, "--help"]).output.split())
    assert hidden not in text
    assert shown in text
    assert ("a list makes a row for each" in text) == (name != "figure2")


def test_a_wrong_folder_of_videos_ends_with_65(tmp_path: Path) -> None:
    for words in (("extract",), ("table2",), ("table2", "--dataset", "ucf101")):
        printed = run(*words, "--out", tmp_path / "out", "--videos", tmp_path / "nowhere")
        assert printed["exit_code"] == 65, words
        assert "nowhere" in printed["error"]["message"]
        assert printed["error"]["fix"]


def test_extraction_stops_at_the_first_unreachable_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def unreachable(program, *arguments, quiet=True):
        tried.append(arguments)
        failed = CommandFailed("flamest-export ended with status 69")
        failed.error_message, failed.error_code = "cannot fetch 'Salesforce/blip' from the hub", "unreachable"
        failed.exit_status = 69
        raise failed

    class Silent:
        def advance(self, steps: int = 1) -> None: ...

        def describe(self, text: str) -> None: ...

    monkeypatch.setattr(extraction, "run_command", unreachable)
    with pytest.raises(UnreachableError, match="cannot fetch 'Salesforce/blip'") as raised:
        extract_all(ExtractionRequest(tmp_path, tmp_path / "videos", "published", ("blip", "slow")), Silent())
    assert len(tried) == 1
    assert "--weights miniworld" in raised.value.fix
