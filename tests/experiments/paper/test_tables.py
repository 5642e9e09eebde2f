"""Tables from their specifications and the results of their runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
from flamest.base.errors import DataError
from flamest.experiments.paper import paper_tables, table_specs
from flamest.experiments.paper.experiments import TABLES
from flamest.experiments.paper.external_runs import ExternalRun, ExternalRuns, read_external_runs
from flamest.experiments.paper.features import FeatureSource, open_features, table_name
from flamest.experiments.paper.inputs import OTHER, ExperimentInputs, Settings
from flamest.experiments.paper.jobs import PartitionRule, RunFailure
from flamest.experiments.paper.pool import WorkerConfig, run_jobs
from flamest.experiments.paper.splits import SplitRule
from flamest.experiments.paper.table_output import as_text
from flamest.experiments.paper.tables import build_table, estimate, paired
from flamest.fedproto.records import TrainSettings

QUICK = TrainSettings(epochs=1, batch_size=64, learning_rate=0.01)


def test_an_impossible_run_is_a_row_with_its_reason(inputs: ExperimentInputs, worker: WorkerConfig) -> None:
    impossible = inputs.job(partition=PartitionRule("iid", silos=1000))
    table = table_specs.TableSpec(
        "t", "t", (table_specs.RowSpec("bad", (impossible,)), table_specs.RowSpec("good", (inputs.job(),)))
    )
    results = run_jobs(table.jobs, inputs.data, worker)
    assert isinstance(results[impossible], RunFailure)
    bad, good = build_table(table, results).rows
    assert bad.status == "1 of 1 failed: impossible_split"
    assert "1000 silos" in bad.note
    assert good.last is not None


def test_the_interval_is_students_t(inputs: ExperimentInputs) -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert found.interval == pytest.approx(4.302653 / 3**0.5)  # t(0.975, 2) = 4.302653, standard deviation 1
    assert found.deviation == pytest.approx(1.0)
    assert estimate([]) is None
    assert estimate([5.0]).interval is None  # type: ignore[union-attr]
    assert paired([2.0, 4.0], [1.0, 3.0]).interval == 0.0  # type: ignore[union-attr]


def test_tables_share_runs_and_name_every_row_once(inputs: ExperimentInputs) -> None:
    for make in TABLES.values():
        names = [row.name for row in make(inputs).rows]
        assert len(set(names)) == len(names)
    shared = set(paper_tables.table2(inputs).jobs) & set(paper_tables.table5(inputs).jobs)
    assert inputs.job() in shared
    assert any(row.against for row in paper_tables.beyond(inputs).rows)


def test_beta_1_keeps_the_non_iid_rows_and_trains_nothing_twice(inputs: ExperimentInputs) -> None:
    even = ExperimentInputs(inputs.data, dataclasses.replace(inputs.settings, beta=1.0))
    for make in (paper_tables.table5, paper_tables.table7, paper_tables.table8, paper_tables.beyond):
        rows = make(even).rows
        assert len({row.jobs for row in rows if row.jobs}) == len([row for row in rows if row.jobs])
        assert any("Non-IID" in row.name for row in rows)


def test_only_several_seeds_have_an_interval_and_its_explanation(
    inputs: ExperimentInputs, worker: WorkerConfig
) -> None:
    for seeds in (1, 2):
        some = ExperimentInputs(inputs.data, dataclasses.replace(inputs.settings, seeds=seeds, rounds=1))
        base = table_specs.row_spec(some, "base", some.job())
        option = dataclasses.replace(
            table_specs.row_spec(some, "option", some.job(standardise=True)), against=base.jobs
        )
        table = table_specs.TableSpec("t", "t", (base, option))
        result = build_table(table, run_jobs(table.jobs, some.data, worker))
        assert result.rows[1].difference is not None
        assert ("±" in as_text(result)) is (seeds > 1)
        assert ("one and the same test clips" in as_text(result)) is (seeds > 1)


def test_overlapping_splits_have_a_standard_deviation_and_no_interval(
    inputs: ExperimentInputs, worker: WorkerConfig
) -> None:
    quick = dataclasses.replace(inputs.settings, rounds=1, scale=dataclasses.replace(OTHER, folds=3))
    table = paper_tables.cross_validation(ExperimentInputs(inputs.data, quick))
    [row] = build_table(table, run_jobs(table.jobs, inputs.data, worker)).rows
    assert (row.seeds, row.last_interval) == (3, None)
    assert isinstance(row.extra["deviation"], float)


def test_a_baselines_row_is_its_result_file_or_not_run(inputs: ExperimentInputs, tmp_path: Path) -> None:
    assert [row.status for row in paper_tables.table2(inputs).rows if row.name == "KD"] == ["not run"]
    record = ExternalRun("KD", "miniworld", 0.5, 0.4, 1.0, 0.1, 10, (0.5, 0.4))
    (tmp_path / "kd.json").write_bytes(msgspec.json.encode({**msgspec.to_builtins(record), "more": 1}))
    with_kd = dataclasses.replace(inputs, external=read_external_runs(tmp_path, "miniworld"))
    kd = tuple(row for row in paper_tables.table2(with_kd).rows if row.name == "KD")
    [row] = build_table(table_specs.TableSpec("t", "t", kd), {}).rows
    assert (row.best, row.last, row.status) == (50.0, 40.0, "taken in")
    with pytest.raises(DataError, match="measured on miniworld, expected ucf101"):
        read_external_runs(tmp_path, "ucf101")
    (tmp_path / "kd.json").write_text("{")
    with pytest.raises(DataError, match="is not a result"):
        read_external_runs(tmp_path, "miniworld")
    assert read_external_runs(None, "") == ExternalRuns()


def test_rows_have_the_papers_number_for_their_data_set(folder: Path) -> None:
    data = open_features(FeatureSource(folder=folder))
    inputs = ExperimentInputs(data, Settings("hmdb51", OTHER, 2, 1, QUICK, SplitRule()))
    rows = {row.name: row.paper for row in paper_tables.table2(inputs).rows}
    assert rows["BLIP+Slow"].value == 66.38  # type: ignore[union-attr]
    assert rows[table_name("blip-text+i3d")].value == 60.13  # type: ignore[union-attr]
