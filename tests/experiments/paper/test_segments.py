"""Experiments on stores whose clips are segments of recordings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.base.files import sha256_bytes
from flamest.base.process import Shutdown
from flamest.experiments.datasets import leakage
from flamest.experiments.paper.experiments import ExperimentContext, run_experiment
from flamest.experiments.paper.features import FeatureSource, open_features
from flamest.experiments.paper.figures import pca_projection
from flamest.experiments.paper.inputs import OTHER, ExperimentInputs, Settings
from flamest.experiments.paper.pool import WorkerConfig
from flamest.experiments.paper.splits import SplitRule, split_data
from flamest.experiments.paper.training import partition_of
from flamest.experiments.recordings import silo_units
from flamest.fedproto.records import TrainSettings
from flamest.runtime.clip_records import Clip, Segment, clip_identity

RECORDINGS, EACH, WIDTH = 10, 6, 5
AT_CHANCE = TrainSettings(learning_rate=1e-6)


def write_recording(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for level in range(10 * (EACH + 1)):
            picture = np.full((32, 48, 3), 3 * level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``features``: stores of segments of ten recordings, neighbours sharing frames; ``videos``. Read only."""
    folder = tmp_path_factory.mktemp("segments")
    (folder / "videos").mkdir()
    (folder / "features").mkdir()
    write_recording(folder / "videos" / "day-0.mp4")
    for number in range(1, RECORDINGS):
        (folder / "videos" / f"day-{number}.mp4").hardlink_to(folder / "videos" / "day-0.mp4")
    random = np.random.default_rng(0)
    for name in ("blip", "slow"):
        rows = []
        for number in range(RECORDINGS):
            for part in range(EACH):
                segment, file = Segment.of_seconds(part, part + 1.5), sha256_bytes(f"day-{number}".encode())
                group = f"day-{number} half-{2 * part // EACH}"  # but the halves share frames
                path = f"day-{number}.mp4"
                clip = Clip(Path(path), clip_identity(file, segment), "ab"[part % 2], group, segment, file)
                x = random.normal(size=WIDTH).astype(np.float32)
                row = FeatureRow(clip, x, WIDTH if name == "blip" else 0, name, "fp32", "a ball", 0, (0.0, 0.5, 1.2))
                rows.append((f"{path}#{segment}", row))
        with FeatureStore.open(folder / "features" / f"{name}.sqlite") as store:
            store.add_rows(rows)
    return folder


@pytest.fixture
def inputs(folder: Path) -> ExperimentInputs:
    settings = Settings("", OTHER, 1, 1, AT_CHANCE, SplitRule(), silos=2, videos=folder / "videos")
    return ExperimentInputs(open_features(FeatureSource(folder=folder / "features")), settings)


def test_a_split_by_groups_divides_no_recording_with_shared_frames(inputs):
    data, split = inputs.data, inputs.split()
    sides = [{data.clips[row].file for row in rows} for rows in (split.train, split.test)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert split.leakage.recordings == 0
    assert len(set(data.groups)) == RECORDINGS


def test_recordings_that_the_paper_split_divides_are_counted(inputs):
    split = split_data(inputs.data, SplitRule("paper"))
    assert split.leakage.recordings > 0
    assert f"{split.leakage.recordings} recordings have segments in both" in str(split.leakage)


def test_groups_that_share_no_frames_may_divide_a_recording(inputs):
    data = inputs.data
    found = leakage([note.sha256 for note in data.clips], np.arange(30), np.arange(30, 60), data.extents)
    assert (found.groups, found.recordings > 0) == (0, True)


def test_silos_of_an_experiment_get_whole_recordings(inputs):
    data = inputs.data
    units = silo_units(data.groups, data.extents)
    for rule in (inputs.iid(), inputs.dirichlet()):
        parts = partition_of(rule, data.y, units, 0).silos
        files = [{data.clips[row].file for row in rows} for rows in parts]
        assert sum(map(len, parts)) == len(data.y)
        assert not files[0] & files[1]


def test_the_failures_page_shows_segments_with_their_own_frames(inputs, folder, tmp_path):
    worker = WorkerConfig(FeatureSource(folder=folder / "features"), tmp_path / "runs")
    context = ExperimentContext(inputs, worker, tmp_path / "out", Shutdown(), pca_projection)
    run_experiment("failures", context)
    page = (tmp_path / "out" / "failures.html").read_text()
    shown = page.count("Predicted")
    assert shown > 0
    assert page.count(".mp4#t=") == shown
    assert page.count("keyframe 3 of 3") == shown


def test_a_segment_whose_recording_is_gone_has_no_pictures(inputs, folder, tmp_path):
    settings = dataclasses.replace(inputs.settings, videos=tmp_path)
    worker = WorkerConfig(FeatureSource(folder=folder / "features"), tmp_path / "runs")
    context = ExperimentContext(
        ExperimentInputs(inputs.data, settings), worker, tmp_path / "out", Shutdown(), pca_projection
    )
    run_experiment("failures", context)
    page = (tmp_path / "out" / "failures.html").read_text()
    assert page.count("no pictures: give --videos DIR") == page.count("Predicted") > 0
