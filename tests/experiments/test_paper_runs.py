"""From features to tables: joining, splitting, running, remembering, writing."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureStore
from flamest.base.errors import DataError, UsageError
from flamest.base.process import Shutdown
from flamest.experiments.paper import plans, pool
from flamest.experiments.paper.commands import TABLES, ExperimentContext, run_all, run_experiment
from flamest.experiments.paper.estimates import estimate, paired
from flamest.experiments.paper.external_runs import GivenRun, GivenRuns, read_given
from flamest.experiments.paper.features import FeatureSource, open_features, table_name, untrained_marker
from flamest.experiments.paper.figures import classes_to_show, pca_projection
from flamest.experiments.paper.findings import finding_jobs, findings
from flamest.experiments.paper.jobs import Job, PartitionRule, RunFailure, RunFolder, RunResult, job_key
from flamest.experiments.paper.plan_beyond import beyond
from flamest.experiments.paper.pool import Stopped, WorkerConfig, run_jobs
from flamest.experiments.paper.settings import OTHER, Context, Settings
from flamest.experiments.paper.splits import SplitRule, split_data
from flamest.experiments.paper.tables import as_text, build_table
from flamest.fedproto.records import Strategy, TrainSettings

_spec = importlib.util.spec_from_file_location("paper_features", Path(__file__).with_name("paper_features.py"))
assert _spec is not None
assert _spec.loader is not None
paper_features = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(paper_features)

QUICK = TrainSettings(epochs=1, batch_size=64, learning_rate=0.01)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paper_features.make_stores(tmp_path_factory.mktemp("features"), objects=2, motions=2, groups=15)


@pytest.fixture
def context(folder: Path) -> Context:
    settings = Settings("", OTHER, 2, 2, QUICK, SplitRule())
    return Context(open_features(FeatureSource(folder=folder)), settings)


@pytest.fixture
def place(folder: Path, tmp_path: Path) -> WorkerConfig:
    return WorkerConfig(FeatureSource(folder=folder), tmp_path / "runs")


def test_a_pair_is_its_singles_side_by_side_and_rows_are_joined_by_clip(context: Context) -> None:
    data = context.data
    both = data.x("blip+slow")
    assert np.array_equal(both, np.concatenate([data.x("blip"), data.x("slow")], axis=1))
    assert data.widths("blip+slow") == (6, 5)
    assert [note.label for note in data.clips] == [data.labels[number] for number in data.y]
    assert list(data.clips) == sorted(data.clips, key=lambda note: note.sha256)


def test_a_store_of_the_pair_is_split_into_blip_and_slow(folder: Path, tmp_path: Path, context: Context) -> None:
    from flamest.agent.extraction.store import FeatureRow
    from flamest.runtime.records import Clip

    x = context.data.x("blip+slow")
    with FeatureStore.open(tmp_path / "pair.sqlite") as store:
        store.add_rows(
            (note.path, FeatureRow(Clip(Path(note.path), note.sha256, note.label, note.group), x[row], 6, "f", "fp32"))
            for row, note in enumerate(context.data.clips)
        )
    pair = open_features(FeatureSource(store=tmp_path / "pair.sqlite"))
    assert pair.main == "blip+slow"
    assert np.array_equal(pair.x("slow"), context.data.x("slow"))
    assert pair.digest("blip+slow") == context.data.digest("blip+slow")


def test_imported_features_are_one_extractor_without_the_papers_numbers(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "f").mkdir()
    source = FeatureSource(store=folder / "slow.sqlite")  # vlm_width 0, as imported features have
    data = open_features(source)
    assert data.main == "store"
    context = Context(data, Settings("ucf101", OTHER, 2, 1, QUICK, SplitRule()))
    assert all(line.paper is None for line in plans.table5(context).lines)
    assert {line.status for line in plans.table9(context).lines} == {"needs two modalities", ""}


def test_missing_extractors_say_not_extracted_and_untrained(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "features"
    copied.mkdir()
    (copied / "blip.sqlite").write_bytes((folder / "blip.sqlite").read_bytes())
    untrained_marker(copied, "i3d").write_text("not trained")
    data = open_features(FeatureSource(folder=copied))
    assert (data.state("blip"), data.state("blip+i3d"), data.state("slow")) == ("ready", "untrained", "not extracted")
    with pytest.raises(DataError, match="untrained"):
        data.x("blip+i3d")
    with pytest.raises(UsageError, match="no extractor 'vgg'"):
        data.state("vgg")


def test_an_empty_folder_says_how_to_extract(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no feature stores") as caught:
        open_features(FeatureSource(folder=tmp_path))
    assert "flamest-experiment extract" in caught.value.fix


def test_another_split_seed_or_number_is_another_key_and_the_same_is_the_same(context: Context) -> None:
    job, digest = context.job(), context.data.digest("blip+slow")
    others = [
        msgspec.structs.replace(job, seed=1),
        msgspec.structs.replace(job, split=SplitRule("groups", seed=1)),
        msgspec.structs.replace(job, partition=PartitionRule("dirichlet", beta=0.5)),
        msgspec.structs.replace(job, strategy=Strategy(server_momentum=0.5)),
        msgspec.structs.replace(job, train=TrainSettings(epochs=2)),
    ]
    keys = {job_key(other, digest) for other in others} | {job_key(job, "another digest")}
    assert len(keys) == 6
    assert job_key(job, digest) not in keys
    assert job_key(job, digest) == job_key(context.job(), digest)


def test_a_finished_run_is_not_run_again(
    context: Context, place: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_jobs([context.job()], context.data, place)
    monkeypatch.setattr(pool, "run_job", lambda *_, **__: pytest.fail("ran again"))
    again = run_jobs([context.job()], context.data, place)
    assert first == again
    [file] = place.runs.glob("*.json")
    file.write_bytes(file.read_bytes()[:-40])  # a file that is not whole is no result
    with pytest.raises(pytest.fail.Exception):
        run_jobs([context.job()], context.data, place)


def test_processes_give_the_same_bits_as_one(context: Context, place: WorkerConfig, tmp_path: Path) -> None:
    jobs = [context.job(seed=seed) for seed in range(2)]
    one = run_jobs(jobs, context.data, place)
    two = run_jobs(jobs, context.data, WorkerConfig(place.source, tmp_path / "other", processes=2))
    assert [one[job].model_sha256 for job in jobs] == [two[job].model_sha256 for job in jobs]
    assert one[jobs[0]].model_sha256 != one[jobs[1]].model_sha256


def test_stopping_keeps_what_is_done_and_the_next_call_goes_on(
    context: Context, place: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, stop, ran = [context.job(seed=seed) for seed in range(3)], Shutdown(), []
    real = pool.run_job

    def run_and_stop(job, *rest, **named):
        ran.append(job)
        stop.request()
        return real(job, *rest, **named)

    monkeypatch.setattr(pool, "run_job", run_and_stop)
    with pytest.raises(Stopped, match="2 of 3 trainings to do"):
        run_jobs(jobs, context.data, place, stop=stop)
    assert len(run_jobs(jobs, context.data, place)) == 3
    assert ran == jobs


def test_a_run_that_cannot_be_is_a_row_that_says_why_and_the_rest_goes_on(
    context: Context, place: WorkerConfig
) -> None:
    impossible = context.job(partition=PartitionRule("iid", silos=1000))
    plan = plans.Plan("t", "t", (plans.Line("bad", (impossible,)), plans.Line("good", (context.job(),))))
    results = run_jobs(plan.jobs, context.data, place)
    assert isinstance(results[impossible], RunFailure)
    bad, good = build_table(plan, results).rows
    assert bad.status == "1 of 1 failed: impossible_split"
    assert "1000 silos" in bad.note
    assert good.last is not None


def official(place: WorkerConfig, videos: Path) -> WorkerConfig:
    return dataclasses.replace(place, dataset="ucf101", videos=videos)


def write_split_files(context: Context, videos: Path, *, test_group: str) -> None:
    files = videos / "ucfTrainTestlist"
    files.mkdir(parents=True, exist_ok=True)
    sides: dict[str, list[str]] = {"train": [], "test": []}
    for note in context.data.clips:
        sides["test" if f"/{test_group}_" in note.path else "train"].append(note.path)
    for side, paths in sides.items():
        (files / f"{side}list01.txt").write_text("\n".join(paths) + "\n")


@pytest.fixture
def flat(tmp_path: Path, context: Context) -> Context:
    """The same features of clips whose file names are unlike each other, as UCF101's are."""
    from flamest.agent.extraction.store import FeatureRow
    from flamest.runtime.records import Clip

    with FeatureStore.open(tmp_path / "flat.sqlite") as store:
        x = context.data.x("slow")
        names = [f"{note.path.replace('/', '_')}" for note in context.data.clips]
        names = [f"{note.label}/{note.group}_{name}" for note, name in zip(context.data.clips, names, strict=True)]
        store.add_rows(
            (name, FeatureRow(Clip(Path(name), note.sha256, note.label, note.group), x[row], 0, "f", "fp32"))
            for row, (name, note) in enumerate(zip(names, context.data.clips, strict=True))
        )
    data = open_features(FeatureSource(store=tmp_path / "flat.sqlite"))
    return Context(data, Settings("ucf101", OTHER, 1, 1, QUICK, SplitRule("official-1")))


def test_missing_split_files_end_the_command_and_nothing_of_it_is_kept(flat: Context, place: WorkerConfig) -> None:
    videos = place.runs.parent / "videos"
    videos.mkdir()
    job, where = flat.job(), official(place, videos)
    with pytest.raises(DataError, match="official split files of UCF101 are missing"):
        run_jobs([job], flat.data, where)
    write_split_files(flat, videos, test_group="g0")
    [first] = run_jobs([job], flat.data, where).values()
    assert isinstance(first, RunResult)
    write_split_files(flat, videos, test_group="g1")  # other files are another split, and so another run
    [second] = run_jobs([job], flat.data, where).values()
    assert isinstance(second, RunResult)
    assert first.model_sha256 != second.model_sha256


def test_a_failure_that_may_pass_is_run_again_though_a_file_holds_it(context: Context, place: WorkerConfig) -> None:
    job, digest = context.job(), context.data.digest("blip+slow")
    folder = RunFolder(place.runs)
    for code, lasts in (("no_split_files", False), ("diverged", True)):
        folder.keep(job_key(job, digest), digest, job, RunFailure(code, "why"))
        assert (folder.find(job_key(job, digest)) is not None) is lasts


def test_an_error_of_the_machine_is_no_row(
    context: Context, place: WorkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("the store is gone")

    monkeypatch.setattr(pool, "run_job", fail)
    with pytest.raises(DataError, match="the store is gone"):
        run_jobs([context.job()], context.data, place)
    assert not list(place.runs.glob("*.json"))


def test_clips_of_one_group_cannot_be_held_out_and_the_way_out_is_said(tmp_path: Path, place: WorkerConfig) -> None:
    folder = paper_features.make_stores(tmp_path / "one", objects=2, motions=2, groups=1)
    data = open_features(FeatureSource(folder=folder))
    context = Context(data, Settings("", OTHER, 1, 1, QUICK, SplitRule()))
    with pytest.raises(DataError, match="4 clips in 1 groups leaves 4 to train on and 0 to test on") as caught:
        run_jobs([context.job()], data, place)
    assert "--split paper" in caught.value.fix


def test_best_is_over_the_rounds_and_last_is_the_final_model(context: Context, place: WorkerConfig) -> None:
    job = context.job(rounds=4)
    [result] = run_jobs([job], context.data, place).values()
    assert isinstance(result, RunResult)
    assert len(result.curve) == 4
    assert result.last == result.curve[-1]
    assert result.best == max(result.curve)
    split = split_data(context.data, job.split)
    assert result.last == np.mean(np.array(result.predictions) == context.data.y[split.test])
    assert not set(np.array(context.data.groups)[split.train]) & set(np.array(context.data.groups)[split.test])


def test_together_the_modalities_tell_what_neither_tells_alone(context: Context, place: WorkerConfig) -> None:
    train = TrainSettings(epochs=5, batch_size=16, learning_rate=0.003)
    jobs = {name: context.job(name, train=train, rounds=5) for name in ("blip", "slow", "blip+slow")}
    results = run_jobs(list(jobs.values()), context.data, place)
    last = {name: results[job].last for name, job in jobs.items()}
    assert last["blip+slow"] > 0.9
    assert max(last["blip"], last["slow"]) < 0.75


def test_interval_is_students(context: Context) -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert found.interval == pytest.approx(4.302653 / 3**0.5)  # t(0.975, 2) = 4.302653, deviation 1
    assert found.deviation == pytest.approx(1.0)
    assert estimate([]) is None
    assert estimate([5.0]).interval is None  # type: ignore[union-attr]
    assert paired([2.0, 4.0], [1.0, 3.0]).interval == 0.0  # type: ignore[union-attr]


def test_plans_share_runs_and_name_every_row_once(context: Context) -> None:
    for make in TABLES.values():
        names = [line.name for line in make(context).lines]
        assert len(set(names)) == len(names)
    shared = set(plans.table2(context).jobs) & set(plans.table5(context).jobs)
    assert context.job() in shared
    assert any(line.against for line in beyond(context).lines)


def test_beta_1_keeps_the_non_iid_rows_and_trains_nothing_twice(context: Context) -> None:
    even = Context(context.data, dataclasses.replace(context.settings, beta=1.0))
    for make in (plans.table5, plans.table7, plans.table8, beyond):
        lines = make(even).lines
        assert len({line.jobs for line in lines if line.jobs}) == len([line for line in lines if line.jobs])
        assert any("Non-IID" in line.name for line in lines)


def stand_in(run: RunResult, *lasts: float) -> list[RunResult]:
    return [msgspec.structs.replace(run, last=last, curve=(last,)) for last in lasts]


@pytest.fixture
def finished_run(context: Context, place: WorkerConfig) -> RunResult:
    [run] = run_jobs([context.job(rounds=1)], context.data, place).values()
    assert isinstance(run, RunResult)
    return run


ONE_OF_TWO = " over the 1 of 2 seeds that both could be measured with"


@pytest.mark.parametrize(
    ("slow", "text"),
    [
        ((0.84, 0.84), "came out: +6.00 ± 0.00 points"),
        ((0.83, 0.85), "came out: +6.00 ± 12.71 points; not clear: the interval crosses 5"),
        ((0.89, 0.89), "did not come out: +1.00 ± 0.00 points"),
        ((0.84, None), f"came out: +6.00 points{ONE_OF_TWO}; one seed: no interval"),
        ((None, None), "not measured"),
    ],
)
def test_a_finding_says_what_its_interval_crosses_and_pairs_by_seed(
    context: Context, finished_run: RunResult, slow: tuple[float | None, ...], text: str
) -> None:
    failure = RunFailure("diverged", "why")
    results: dict[Job, RunResult | RunFailure] = {}
    for job in finding_jobs(context):
        last = slow[job.seed] if job.extractor == "slow" else 0.9
        results[job] = failure if last is None else stand_in(finished_run, last)[0]
    assert findings(context, results)[0].text == text


def test_failures_of_unlike_seeds_leave_the_seeds_that_both_have(context: Context, finished_run: RunResult) -> None:
    lasts = {("blip+slow", 0): None, ("blip+slow", 1): 0.9, ("slow", 0): 0.2, ("slow", 1): 0.8}
    results: dict[Job, RunResult | RunFailure] = {}
    for job in finding_jobs(context):
        last = lasts.get((job.extractor, job.seed), 0.5)
        results[job] = RunFailure("diverged", "why") if last is None else stand_in(finished_run, last)[0]
    value = findings(context, results)[0].value
    assert value is not None
    assert (value.mean, value.count) == (pytest.approx(10.0), 1)


def test_one_seed_has_no_interval_and_several_say_what_theirs_holds(context: Context, place: WorkerConfig) -> None:
    for seeds in (1, 2):
        some = Context(context.data, dataclasses.replace(context.settings, seeds=seeds, rounds=1))
        base = plans.line(some, "base", some.job())
        option = dataclasses.replace(plans.line(some, "option", some.job(standardise=True)), against=base.jobs)
        plan = plans.Plan("t", "t", (base, option))
        result = build_table(plan, run_jobs(plan.jobs, some.data, place))
        assert result.rows[1].difference is not None
        assert ("±" in as_text(result)) is (seeds > 1)
        assert ("one and the same test clips" in as_text(result)) is (seeds > 1)


def test_overlapping_splits_have_a_deviation_and_no_interval(context: Context, place: WorkerConfig) -> None:
    quick = dataclasses.replace(context.settings, rounds=1, scale=dataclasses.replace(OTHER, folds=3))
    plan = plans.cross_validation(Context(context.data, quick))
    [row] = build_table(plan, run_jobs(plan.jobs, context.data, place)).rows
    assert (row.seeds, row.last_interval) == (3, None)
    assert isinstance(row.extra["deviation"], float)


def test_rivals_are_taken_in_or_said_not_to_have_run(context: Context, tmp_path: Path) -> None:
    assert [line.status for line in plans.table2(context).lines if line.name == "KD"] == ["not run"]
    record = GivenRun("KD", "miniworld", 0.5, 0.4, 1.0, 0.1, 10, (0.5, 0.4))
    (tmp_path / "kd.json").write_bytes(msgspec.json.encode({**msgspec.to_builtins(record), "more": 1}))
    given = read_given(tmp_path, "miniworld")
    table = build_table(
        plans.Plan("t", "t", tuple(line for line in plans.table2(Context(context.data, context.settings, given)).lines
                                   if line.name == "KD")), {},
    )  # fmt: skip
    assert (table.rows[0].best, table.rows[0].last, table.rows[0].status) == (50.0, 40.0, "taken in")
    with pytest.raises(DataError, match="measured on miniworld, this is ucf101"):
        read_given(tmp_path, "ucf101")
    (tmp_path / "kd.json").write_text("{")
    with pytest.raises(DataError, match="is not a result"):
        read_given(tmp_path, "miniworld")
    assert read_given(None, "") == GivenRuns()


def test_the_papers_number_stands_beside_ours(folder: Path) -> None:
    data = open_features(FeatureSource(folder=folder))
    context = Context(data, Settings("hmdb51", OTHER, 2, 1, QUICK, SplitRule()))
    rows = {line.name: line.paper for line in plans.table2(context).lines}
    assert rows["BLIP+Slow"].value == 66.38  # type: ignore[union-attr]
    assert rows[table_name("blip-text+i3d")].value == 60.13  # type: ignore[union-attr]


def test_official_split_without_a_data_set_is_refused(context: Context) -> None:
    with pytest.raises(UsageError, match="official-1 needs --dataset"):
        split_data(context.data, SplitRule("official-1"))


def test_figure_4_shows_one_pair_that_shares_the_object_and_one_that_shares_the_motion(context: Context) -> None:
    assert classes_to_show(context) == (("o0_m0", "o0_m1"), ("o0_m0", "o1_m0"))
    settings = Settings("", OTHER, 2, 1, QUICK, SplitRule(), classes=("o0_m0", "nothing"))
    with pytest.raises(UsageError, match="no classes"):
        classes_to_show(Context(context.data, settings))


@pytest.fixture
def desk(context: Context, place: WorkerConfig, tmp_path: Path) -> ExperimentContext:
    return ExperimentContext(context, place, tmp_path / "out", Shutdown(), pca_projection)


def test_a_table_is_written_as_json_csv_png_and_svg(desk: ExperimentContext) -> None:
    part = run_experiment("table6", desk)
    rows = json.loads((desk.out / "table6.json").read_text())["rows"]
    with (desk.out / "table6.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert all("no group of the" in line["groups"] and line["clips_left_out"].startswith("0,") for line in lines)
    assert "Groups: no group of the" in as_text(part.result)
    assert [row["name"] for row in rows] == [line["name"] for line in lines] == [row.name for row in part.result.rows]
    assert (desk.out / "table6.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (desk.out / "table6.svg").read_bytes()
    assert "training accuracy" in as_text(part.result)


def test_failures_count_every_wrong_clip_and_show_caption_truth_and_prediction(desk: ExperimentContext) -> None:
    few = dataclasses.replace(desk.context.settings, rounds=1, train=TrainSettings(learning_rate=1e-6))  # at chance
    desk = dataclasses.replace(desk, context=Context(desk.context.data, few))
    run_experiment("failures", desk)
    found = json.loads((desk.out / "failures.json").read_text())
    confusion = np.array(found["confusion"])
    [result] = run_jobs([desk.context.job()], desk.context.data, desk.place).values()
    assert confusion.sum() == result.test_rows
    assert np.trace(confusion) == round(result.last * result.test_rows)
    wrong = result.test_rows - int(np.trace(confusion))
    assert wrong > 0
    page = (desk.out / "failures.html").read_text()
    assert page.count("a ball") == page.count("Predicted") == wrong
    assert f"of {wrong}</h2>" in page


def test_all_makes_one_self_contained_page_with_every_experiment(
    desk: ExperimentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flamest.experiments.paper import commands

    cheap = ("table2", "table4")
    monkeypatch.setattr(commands, "TABLES", {name: TABLES[name] for name in cheap})
    monkeypatch.setattr(commands, "CURVES", {})
    shown = (*cheap, "figure4", "failures", "resources")
    monkeypatch.setattr(commands, "EXPERIMENTS", shown)
    tables, found, page = run_all(desk)
    text = page.read_text()
    assert set(tables) == set(shown)
    assert all(result.title in text.replace("&amp;", "&") for result in tables.values())
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert len(found) == 6
    assert found[0].value is not None
