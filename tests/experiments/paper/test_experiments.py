"""Whole experiments: files of a table, the page of failures, the report of all."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from flamest.base.errors import UsageError
from flamest.base.process import Shutdown
from flamest.experiments.paper import experiments
from flamest.experiments.paper.experiments import TABLES, ExperimentContext, run_all, run_experiment
from flamest.experiments.paper.figures import classes_to_show, pca_projection
from flamest.experiments.paper.inputs import OTHER, ExperimentInputs, Settings
from flamest.experiments.paper.pool import WorkerConfig, run_jobs
from flamest.experiments.paper.splits import SplitRule
from flamest.experiments.paper.table_output import as_text
from flamest.fedproto.records import TrainSettings

QUICK = TrainSettings(epochs=1, batch_size=64, learning_rate=0.01)


@pytest.fixture
def context(inputs: ExperimentInputs, worker: WorkerConfig, tmp_path: Path) -> ExperimentContext:
    return ExperimentContext(inputs, worker, tmp_path / "out", Shutdown(), pca_projection)


def test_a_table_is_written_as_json_csv_png_and_svg(context: ExperimentContext) -> None:
    part = run_experiment("table6", context)
    rows = json.loads((context.out / "table6.json").read_text())["rows"]
    with (context.out / "table6.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert all("no group of the" in line["groups"] and line["clips_left_out"].startswith("0,") for line in lines)
    assert "Groups: no group of the" in as_text(part.result)
    assert [row["name"] for row in rows] == [line["name"] for line in lines] == [row.name for row in part.result.rows]
    assert (context.out / "table6.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (context.out / "table6.svg").read_bytes()
    assert "training accuracy" in as_text(part.result)


def test_the_failures_page_shows_every_misclassified_clip(context: ExperimentContext) -> None:
    few = dataclasses.replace(context.inputs.settings, rounds=1, train=TrainSettings(learning_rate=1e-6))  # at chance
    context = dataclasses.replace(context, inputs=ExperimentInputs(context.inputs.data, few))
    run_experiment("failures", context)
    found = json.loads((context.out / "failures.json").read_text())
    confusion = np.array(found["confusion"])
    [result] = run_jobs([context.inputs.job()], context.inputs.data, context.worker).values()
    assert confusion.sum() == result.test_rows
    assert np.trace(confusion) == round(result.last * result.test_rows)
    wrong = result.test_rows - int(np.trace(confusion))
    assert wrong > 0
    page = (context.out / "failures.html").read_text()
    assert page.count("a ball") == page.count("Predicted") == wrong
    assert f"of {wrong}</h2>" in page


def test_all_writes_one_self_contained_page(context: ExperimentContext, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = ("table2", "table4")
    monkeypatch.setattr(experiments, "TABLES", {name: TABLES[name] for name in cheap})
    monkeypatch.setattr(experiments, "CURVES", {})
    shown = (*cheap, "figure4", "failures", "resources")
    monkeypatch.setattr(experiments, "EXPERIMENTS", shown)
    tables, found, page = run_all(context)
    text = page.read_text()
    assert set(tables) == set(shown)
    assert all(result.title in text.replace("&amp;", "&") for result in tables.values())
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert len(found) == 6
    assert found[0].value is not None


def test_figure_4_pairs_share_the_object_or_the_motion(inputs: ExperimentInputs) -> None:
    assert classes_to_show(inputs) == (("o0_m0", "o0_m1"), ("o0_m0", "o1_m0"))
    settings = Settings("", OTHER, 2, 1, QUICK, SplitRule(), classes=("o0_m0", "nothing"))
    with pytest.raises(UsageError, match="no classes"):
        classes_to_show(ExperimentInputs(inputs.data, settings))
