"""On which clips a table stands: shares, the rivals beside it, what CSVs say of it."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path

import msgspec
import pytest
from flamest.base.errors import UsageError
from flamest.base.process import Shutdown
from flamest.experiments import cli
from flamest.experiments.baselines.cli import default_test_share
from flamest.experiments.baselines.clips import plan_films
from flamest.experiments.datasets import groups_digest
from flamest.experiments.miniworld.videos import EXPERIMENT_TEST_SHARE
from flamest.experiments.paper import plans, request
from flamest.experiments.paper.baseline_notes import rival_warnings
from flamest.experiments.paper.commands import ExperimentContext, run_experiment
from flamest.experiments.paper.external_runs import GivenRun, read_given
from flamest.experiments.paper.features import FeatureSource, open_features
from flamest.experiments.paper.figures import pca_projection
from flamest.experiments.paper.pool import WorkerConfig
from flamest.experiments.paper.request import Request, open_desk
from flamest.experiments.paper.settings import OTHER, SCALES, Context, Settings
from flamest.experiments.paper.splits import SplitRule, split_data
from flamest.fedproto.records import TrainSettings
from typer.testing import CliRunner

_spec = importlib.util.spec_from_file_location("paper_features", Path(__file__).with_name("paper_features.py"))
assert _spec is not None
assert _spec.loader is not None
paper_features = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(paper_features)

QUICK = TrainSettings(epochs=1, batch_size=64, learning_rate=0.01)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paper_features.make_stores(tmp_path_factory.mktemp("features"), objects=2, motions=2, groups=16)


@pytest.fixture(autouse=True)
def no_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request.Shutdown, "on_signals", request.Shutdown)


def context_of(folder: Path, rule: SplitRule = SplitRule(), **changes) -> Context:  # noqa: B008 (frozen)
    settings = dataclasses.replace(Settings("miniworld", OTHER, 2, 2, QUICK, rule), **changes)
    return Context(open_features(FeatureSource(folder=folder)), settings)


def kd_result(folder: Path, test_groups: str, **changes) -> dict:
    details = {
        "clips": {"centre": 30, "silos": [7, 8, 7, 8], "test": 12},
        "centre": "set aside from the training clips",
        "split": {"train": 60, "test": 12, "test_groups_sha256": test_groups},
    }
    record = msgspec.to_builtins(GivenRun("KD", "miniworld", 0.5, 0.4, 1.0, 0.1, 10, (0.5, 0.4), scale="small"))
    record |= {"settings": {"federated": {"beta": None}}, "details": details | changes}
    folder.mkdir(exist_ok=True)
    (folder / "kd.json").write_bytes(msgspec.json.encode(record))
    return record


def kd_line(context: Context) -> plans.Line:
    return next(line for line in plans.table2(context).lines if line.name == "KD")


def test_the_mini_world_holds_out_three_quarters_and_its_rivals_the_same() -> None:
    assert SCALES["miniworld"].split == SplitRule("groups", share=EXPERIMENT_TEST_SHARE)
    assert default_test_share("miniworld") == EXPERIMENT_TEST_SHARE
    assert default_test_share("ucf101") == OTHER.split.share


def test_a_share_is_asked_for_and_naming_the_default_split_does_not_change_it(folder: Path, tmp_path: Path) -> None:
    def rule(**asked) -> SplitRule:
        return open_desk(Request(store=folder, out=tmp_path, **asked)).context.settings.split

    assert rule(dataset="miniworld", split="groups").share == EXPERIMENT_TEST_SHARE
    assert rule(dataset="miniworld", test_share=0.5).share == 0.5
    assert rule(dataset="hmdb51", split="groups").share == 0.2
    with pytest.raises(UsageError, match="whole groups that are held out"):
        rule(dataset="hmdb51", test_share=0.5)


def test_cross_validation_names_the_share_that_it_repeats(folder: Path) -> None:
    assert "random 25:75 splits" in plans.cross_validation(context_of(folder, SplitRule(share=0.75))).title
    assert "random 80:20 splits" in plans.cross_validation(context_of(folder)).title


def test_a_rival_that_was_tested_on_the_tables_clips_says_what_it_was_trained_on(folder: Path, tmp_path: Path) -> None:
    context = context_of(folder)
    held_out = [context.data.groups[row] for row in split_data(context.data, context.settings.split).test]
    kd_result(tmp_path / "kd", groups_digest(held_out))
    context = dataclasses.replace(context, given=read_given(tmp_path / "kd", "miniworld"))
    note = kd_line(context).note
    assert "30 of 60 training clips at its centre, which no silo has" in note
    assert "silos of 7 to 8 clips IID" in note
    assert "tested on 12 clips" in note
    assert "WARNING" not in note
    assert rival_warnings(context) == []


def test_a_centre_with_clips_of_its_own_is_said(folder: Path, tmp_path: Path) -> None:
    kd_result(tmp_path / "kd", "", centre="kinetics")
    assert "30 clips of its centre's own" in (read_given(tmp_path / "kd", "miniworld").kd or pytest.fail("none")).how


@pytest.mark.parametrize(
    ("groups", "rule", "said"),
    [
        (groups_digest(["g0"]), SplitRule(), "not tested on this table's test clips"),
        ("", SplitRule(), "does not say which clips"),
        (groups_digest(["g0"]), SplitRule("paper"), "split paper"),
    ],
)
def test_a_rival_of_another_split_is_a_row_with_a_warning(folder: Path, tmp_path: Path, groups, rule, said) -> None:
    kd_result(tmp_path / "kd", groups)
    context = context_of(folder, rule, seeds=1)
    context = dataclasses.replace(context, given=read_given(tmp_path / "kd", "miniworld"))
    assert kd_line(context).note.startswith("WARNING: ")
    [warning] = rival_warnings(context)
    assert said in kd_line(context).note
    assert warning.startswith("KD: ")
    assert ("--test-share" in warning) == (rule.kind == "groups")


def test_the_warning_reaches_the_terminal(folder: Path, tmp_path: Path) -> None:
    kd_result(tmp_path / "kd", groups_digest(["g0"]))
    options = ["--seeds", "1", "--epochs", "1", "--jobs", "1", "--dataset", "miniworld", "--test-share", "0.5"]
    given = ["--store", str(folder), "--out", str(tmp_path / "out"), "--results", str(tmp_path / "kd")]
    done = CliRunner().invoke(cli.app, ["table3", *options, *given])
    assert done.exit_code == 0
    assert "warning: KD: not tested on this table's test clips" in done.stderr


def test_the_rivals_record_which_groups_they_hold_out(tmp_path: Path) -> None:
    lines = ["path,label,group"]
    for group in range(4):
        for label in ("ball", "box"):
            (tmp_path / f"{label}{group}.mp4").write_bytes(b"0")
            lines.append(f"{label}{group}.mp4,{label},g{group}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    plan = plan_films(tmp_path, test_share=0.5, seed=0)
    held_out = {plan.videos[row].group for row in plan.test}
    assert plan.split == {"train": 4, "test": 4, "test_groups_sha256": groups_digest(held_out)}


def test_table_9_sets_its_epochs_itself_and_says_so_where_all_has_others(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli.app, ["table9", "--epochs", "7", "--store", str(folder), "--out", str(tmp_path / "out"), "--json"]
    )
    assert json.loads(done.stdout.splitlines()[-1])["error"]["message"].startswith("--epochs 7: table9 sets that")
    plan = plans.table9(context_of(folder))
    assert [line.jobs[0].train.epochs for line in plan.lines] == [5, 50, 1]
    assert "RGCF's 5 and 50 epochs are the table's own; concatenation has 1." in plan.notes
    five = context_of(folder, train=TrainSettings())
    assert not any("table's own" in note for note in plans.table9(five).notes)


def test_a_curves_csv_says_on_which_split_it_was_measured(folder: Path, tmp_path: Path) -> None:
    context = context_of(folder, scale=dataclasses.replace(OTHER, figure_rounds=2), seeds=1)
    place = WorkerConfig(FeatureSource(folder=folder), tmp_path / "runs")
    run_experiment("figure2", ExperimentContext(context, place, tmp_path / "out", Shutdown(), pca_projection))
    with (tmp_path / "out" / "figure2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2  # curves, rounds
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 1
        assert row["split"].startswith("groups: ")
        assert "no group of the" in row["groups"]
        assert row["clips_left_out"].startswith("0,")
