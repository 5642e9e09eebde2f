"""Splits of tables, and the results of KD and ActionCLIP in them."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from flamest.base.errors import UsageError
from flamest.base.process import Shutdown
from flamest.experiments import cli
from flamest.experiments.baselines.cli import default_test_share
from flamest.experiments.baselines.clips import split_clips
from flamest.experiments.datasets import groups_digest
from flamest.experiments.miniworld.videos import EXPERIMENT_TEST_SHARE
from flamest.experiments.paper import paper_tables, table_specs
from flamest.experiments.paper.experiments import ExperimentContext, run_experiment
from flamest.experiments.paper.external_runs import ExternalRun, read_external_runs
from flamest.experiments.paper.features import FeatureSource, open_features
from flamest.experiments.paper.figures import pca_projection
from flamest.experiments.paper.inputs import OTHER, SCALES, ExperimentInputs, Settings
from flamest.experiments.paper.pool import WorkerConfig
from flamest.experiments.paper.request import ExperimentRequest, open_context
from flamest.experiments.paper.splits import SplitRule
from flamest.fedproto.records import TrainSettings
from typer.testing import CliRunner

QUICK = TrainSettings(epochs=1, batch_size=64, learning_rate=0.01)


def inputs_of(folder: Path, rule: SplitRule = SplitRule(), **changes) -> ExperimentInputs:  # noqa: B008 (frozen)
    settings = dataclasses.replace(Settings("miniworld", OTHER, 2, 2, QUICK, rule), **changes)
    return ExperimentInputs(open_features(FeatureSource(folder=folder)), settings)


def kd_result(folder: Path, test_groups: str, **changes) -> dict:
    details = {
        "clips": {"centre": 30, "silos": [7, 8, 7, 8], "test": 12},
        "centre": "set aside from the training clips",
        "split": {"train": 60, "test": 12, "test_groups_sha256": test_groups},
    }
    record = msgspec.to_builtins(ExternalRun("KD", "miniworld", 0.5, 0.4, 1.0, 0.1, 10, (0.5, 0.4), scale="small"))
    record |= {"settings": {"federated": {"beta": None}}, "details": details | changes}
    folder.mkdir(exist_ok=True)
    (folder / "kd.json").write_bytes(msgspec.json.encode(record))
    return record


def kd_row(inputs: ExperimentInputs) -> table_specs.RowSpec:
    return next(row for row in paper_tables.table2(inputs).rows if row.name == "KD")


def test_baselines_hold_out_the_same_share_as_the_tables() -> None:
    assert SCALES["miniworld"].split == SplitRule("groups", share=EXPERIMENT_TEST_SHARE)
    assert default_test_share("miniworld") == EXPERIMENT_TEST_SHARE
    assert default_test_share("ucf101") == OTHER.split.share


def test_naming_the_default_split_does_not_change_its_share(folder: Path, tmp_path: Path) -> None:
    def rule(**options) -> SplitRule:
        return open_context(ExperimentRequest(store=folder, out=tmp_path, **options)).inputs.settings.split

    assert rule(dataset="miniworld", split="groups").share == EXPERIMENT_TEST_SHARE
    assert rule(dataset="miniworld", test_share=0.5).share == 0.5
    assert rule(dataset="hmdb51", split="groups").share == 0.2
    with pytest.raises(UsageError, match="needs a split by whole groups"):
        rule(dataset="hmdb51", test_share=0.5)


def test_cross_validation_names_the_share_that_it_repeats(folder: Path) -> None:
    assert "random 25:75 splits" in paper_tables.cross_validation(inputs_of(folder, SplitRule(share=0.75))).title
    assert "random 80:20 splits" in paper_tables.cross_validation(inputs_of(folder)).title


def test_a_result_on_the_tables_test_clips_has_no_warning(folder: Path, tmp_path: Path) -> None:
    inputs = inputs_of(folder)
    held_out = [inputs.data.groups[row] for row in inputs.split().test]
    kd_result(tmp_path / "kd", groups_digest(held_out))
    inputs = dataclasses.replace(inputs, external=read_external_runs(tmp_path / "kd", "miniworld"))
    note = kd_row(inputs).note
    assert "30 of 60 training clips at its centre, which no silo has" in note
    assert "silos of 7 to 8 clips IID" in note
    assert "tested on 12 clips" in note
    assert "WARNING" not in note
    assert inputs.split_warnings() == []


def test_clips_of_the_centres_own_are_in_the_description(tmp_path: Path) -> None:
    kd_result(tmp_path / "kd", "", centre="kinetics")
    [run] = read_external_runs(tmp_path / "kd", "miniworld").present
    assert "30 clips of its centre's own" in run.description


@pytest.mark.parametrize(
    ("groups", "rule", "text"),
    [
        (groups_digest(["g0"]), SplitRule(), "not tested on this table's test clips"),
        ("", SplitRule(), "does not say which clips"),
        (groups_digest(["g0"]), SplitRule("paper"), "split paper"),
    ],
)
def test_a_result_of_another_split_is_a_row_with_a_warning(folder: Path, tmp_path: Path, groups, rule, text) -> None:
    kd_result(tmp_path / "kd", groups)
    inputs = inputs_of(folder, rule, seeds=1)
    inputs = dataclasses.replace(inputs, external=read_external_runs(tmp_path / "kd", "miniworld"))
    assert kd_row(inputs).note.startswith("WARNING: ")
    [warning] = inputs.split_warnings()
    assert text in kd_row(inputs).note
    assert warning.startswith("KD: ")
    assert ("--test-share" in warning) == (rule.kind == "groups")


def test_the_warning_reaches_the_terminal(folder: Path, tmp_path: Path) -> None:
    kd_result(tmp_path / "kd", groups_digest(["g0"]))
    options = ["--seeds", "1", "--epochs", "1", "--jobs", "1", "--dataset", "miniworld", "--test-share", "0.5"]
    paths = ["--store", str(folder), "--out", str(tmp_path / "out"), "--results", str(tmp_path / "kd")]
    done = CliRunner().invoke(cli.app, ["table3", *options, *paths])
    assert done.exit_code == 0
    assert "warning: KD: not tested on this table's test clips" in done.stderr


def test_baselines_record_the_groups_that_they_hold_out(tmp_path: Path) -> None:
    lines = ["path,label,group"]
    for group in range(4):
        for label in ("ball", "box"):
            (tmp_path / f"{label}{group}.mp4").write_bytes(b"0")
            lines.append(f"{label}{group}.mp4,{label},g{group}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    split = split_clips(tmp_path, test_share=0.5, seed=0)
    held_out = {split.videos[row].group for row in split.test}
    assert split.record == {"train": 4, "test": 4, "test_groups_sha256": groups_digest(held_out)}


def test_table_9_sets_its_own_epochs(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli.app, ["table9", "--epochs", "7", "--store", str(folder), "--out", str(tmp_path / "out"), "--json"]
    )
    assert json.loads(done.stdout.splitlines()[-1])["error"]["message"].startswith("--epochs 7: table9 sets that")
    table = paper_tables.table9(inputs_of(folder))
    assert [row.jobs[0].train.epochs for row in table.rows] == [5, 50, 1]
    assert "RGCF's 5 and 50 epochs are set by the table; concatenation has 1." in table.notes
    five = inputs_of(folder, train=TrainSettings())
    assert not any("set by the table" in note for note in paper_tables.table9(five).notes)


def test_a_curves_csv_names_its_split(folder: Path, tmp_path: Path) -> None:
    inputs = inputs_of(folder, scale=dataclasses.replace(OTHER, figure_rounds=2), seeds=1)
    worker = WorkerConfig(FeatureSource(folder=folder), tmp_path / "runs")
    run_experiment("figure2", ExperimentContext(inputs, worker, tmp_path / "out", Shutdown(), pca_projection))
    with (tmp_path / "out" / "figure2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2  # curves, rounds
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 1
        assert row["split"].startswith("groups: ")
        assert "no group of the" in row["groups"]
        assert row["clips_left_out"].startswith("0,")
