"""The command ``flamest-experiment``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from flamest.base.errors import FlamestError, UsageError
from flamest.experiments import cli
from flamest.experiments.paper import experiments, extraction, request
from flamest.experiments.paper.extraction import ExtractionRequest, extract_all
from flamest.experiments.paper.features import untrained_marker
from flamest.experiments.paper.inputs import SCALES
from flamest.experiments.paper.request import ExtractOptions
from flamest.experiments.processes import CommandFailed
from typer.testing import CliRunner

QUICK = ("--seeds", "1", "--rounds", "1", "--epochs", "1", "--jobs", "1")


def run(*arguments: object) -> dict:
    done = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"])
    return json.loads(done.stdout.splitlines()[-1])


def test_every_experiment_is_a_command_and_is_listed() -> None:
    listed = {found["name"] for found in run("list")["experiments"]}
    assert listed == {*experiments.EXPERIMENTS, "all"} == set(cli.SUMMARIES)
    registered = {found.name for found in cli.app.registered_commands}
    assert listed | {"list", "extract", "kd", "actionclip"} <= registered | {"extract"}


def test_rows_have_name_best_last_and_the_papers_number(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ("--seeds", "1", "--rounds", "1", "--jobs", "1")
    printed = run("table9", "--store", folder, "--dataset", "hmdb51", "--split", "groups", "--out", out, *quick)
    rows = {row["name"]: row for row in printed["rows"]}
    assert rows["Simple concatenation"]["paper"] == 70
    assert "cross-validation" in rows["Simple concatenation"]["note"]
    for row in rows.values():
        assert 0 <= row["last"] <= row["best"] <= 100
    assert (out / "table9.csv").is_file()
    assert "no group" in printed["measured_on"]["Groups"]


def test_table_1_counts_the_printed_parameters_except_slowfast(folder: Path, tmp_path: Path) -> None:
    printed = run("table1", "--store", folder, "--out", tmp_path / "out")
    rows = {row["name"]: row for row in printed["rows"]}
    for name, row in rows.items():
        if name in ("KD", "ActionCLIP"):
            assert row["last"] is None
        elif name == "Slow":
            assert (row["last"], row["paper"]) == (32_454_096, 34_566_488)
        else:
            assert row["last"] == row["paper"], name
    assert rows["BLIP+Slow"]["extra"]["in FL (1 output)"] == 1_573_889
    assert "525,311 is a slip" in rows["BLIP"]["note"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "kinetics"), "expected one of"),
        (("--split", "halves"), "expected one of"),
        (("--out", "nowhere"), "holds no feature stores"),
    ],
)
def test_impossible_options_end_with_a_message_and_an_exit_code(
    tmp_path: Path, folder: Path, arguments, message
) -> None:
    source = () if "nowhere" in arguments else ("--store", folder)
    arguments = tuple(tmp_path / word if word == "nowhere" else word for word in arguments)
    printed = run("table2", *source, *arguments)
    assert message in printed["error"]["message"] + printed["error"]["fix"]
    assert printed["exit_code"] in (UsageError.exit_code, 65)


@pytest.mark.parametrize(
    ("name", "option"),
    [("table3", "--rounds"), ("table7", "--epochs"), ("cross-validation", "--seeds"), ("table8", "--silos")],
)
def test_an_option_that_the_experiment_sets_is_refused(folder: Path, tmp_path: Path, name, option) -> None:
    printed = run(name, option, "5", "--store", folder, "--out", tmp_path / "out")
    assert printed["error"]["message"].startswith(f"{option} 5: {name}")
    assert printed["exit_code"] == UsageError.exit_code
    assert not (tmp_path / "out" / f"{name}.json").exists()


def test_a_missing_results_folder_is_an_error(folder: Path, tmp_path: Path) -> None:
    printed = run("table2", "--store", folder, "--out", tmp_path / "out", "--results", tmp_path / "absent")
    assert "no such folder" in printed["error"]["message"]


def test_table_1_needs_no_features(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in run("table1", "--dataset", "hmdb51", "--out", tmp_path / "out")["rows"]}
    assert rows["BLIP+Slow"]["last"] == 279_868_172


def test_figure_4_of_one_class_is_refused(folder: Path, tmp_path: Path) -> None:
    printed = run("figure4", "--classes", "ball_lifting", "--store", folder, "--out", tmp_path / "out")
    assert "two classes" in printed["error"]["message"]


def test_an_untrained_network_leaves_a_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def pretend(program, *arguments, quiet=True):
        ran.append((program, arguments[0]))
        if program == "export" and "i3d" in arguments:
            failed = CommandFailed("flamest-export ended with status 65: i3d is not trained")
            failed.error_code = "untrained"
            raise failed
        if program == "export":
            Path(arguments[-1]).mkdir(parents=True)
        return {"clips": 3, "extracted": 3, "stages_ms": {}}

    class Silent:
        def advance(self, steps: int = 1) -> None: ...

        def describe(self, text: str) -> None: ...

    monkeypatch.setattr(extraction, "run_command", pretend)
    wanted = ExtractionRequest(tmp_path, tmp_path / "videos", "miniworld", ("blip", "i3d"))
    done = extract_all(wanted, Silent())
    assert done["i3d"] == {"status": "untrained"}
    assert untrained_marker(tmp_path, "i3d").is_file()
    assert extraction.report_file(tmp_path, "blip").is_file()
    extract_all(wanted, Silent())
    assert ran.count(("export", "--backend")) == 3  # BLIP's bundle is used again, I3D is tried again
    monkeypatch.setattr(extraction, "run_command", lambda *_, **__: (_ for _ in ()).throw(CommandFailed("disk full")))
    with pytest.raises(CommandFailed):
        extract_all(wanted, Silent())


def test_extract_refuses_pairs_of_extractors(tmp_path: Path) -> None:
    with pytest.raises(FlamestError, match="no single extractor 'blip\\+slow'"):
        request.extract_features(
            ExtractOptions(tmp_path / "out", videos=tmp_path, weights="random:tiny", names=("blip+slow",))
        )
    assert not (tmp_path / "out").exists()


def test_the_papers_settings_are_the_defaults_of_its_data_sets() -> None:
    for name in ("ucf101", "hmdb51"):
        scale = SCALES[name]
        assert (scale.rounds, scale.train.epochs, scale.train.batch_size) == (80, 5, 128)
        assert (scale.train.learning_rate, scale.train.weight_decay) == (0.01, 1e-4)
        assert (scale.central_epochs, scale.figure_rounds, scale.folds) == (80, 50, 20)


def test_help_describes_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from flamest.experiments.cli import main; main()", "table8", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "4, 8 and 10 silos" in done.stdout
