"""On a device a thread per stage: few shapes, the host's results, errors and ends that leave nothing behind."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flamest.base.errors import DataError, GraphError
from flamest.base.files import Stopped, sha256_file
from flamest.runtime import extractor as extractor_module
from flamest.runtime import stages
from flamest.runtime.backends.onnxruntime_cpu import OrtSession
from flamest.runtime.backends.opening import OpeningOptions
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import PipelineOptions, open_extractor
from flamest.runtime.keyframe_features import KeyframeFeatures
from flamest.runtime.pipeline_options import PipelineMachine, PipelineSizes, choose_sizes, rounded_up
from flamest.runtime.video.clip_reader import ClipReader
from flamest.runtime.video.read_ahead import ReadAhead


@pytest.fixture(scope="module")
def many(clips, tmp_path_factory):
    """Twenty clips, the fourth of them broken."""
    folder = tmp_path_factory.mktemp("many")
    paths = [clips.write_clip(folder / f"{seed}.avi", frames=12 + 2 * seed, seed=seed, noise=20) for seed in range(20)]
    paths[3].write_text("no video")
    return [Clip(path, sha256_file(path)) for path in paths]


@pytest.fixture(scope="module", params=[3, 4])
def bundle(request, toys, tmp_path_factory):
    """A bundle in both forms of the graphs."""
    return toys.write_bundle(tmp_path_factory.mktemp(f"form {request.param}") / "bundle", form=request.param)


@pytest.fixture
def device(monkeypatch):
    """ONNX Runtime's sessions pretend to compute elsewhere, on at most 8 rows; the runs' shapes by input."""
    runs, run_values = {}, OrtSession.run_values

    def recorded(self, feeds, outputs=None, **into):
        for name, feed in feeds.items():
            shape = feed.shape if isinstance(feed, np.ndarray) else tuple(feed.shape())
            runs.setdefault((self._shown.rpartition("/")[2], name), []).append(shape)
        return run_values(self, feeds, outputs, **into)

    def run(self, feeds, outputs=None):
        return {name: value.numpy() for name, value in self.run_values(feeds, outputs).items()}

    monkeypatch.setattr(OrtSession, "computes_on_host", False)
    monkeypatch.setattr(OrtSession, "largest_batch", property(lambda self: 256 if "keyframes" in self._shown else 8))
    monkeypatch.setattr(OrtSession, "run_values", recorded)
    monkeypatch.setattr(OrtSession, "run", run)
    return runs


def extracted(bundle, clips, **sizes):
    with open_extractor(bundle, threads=1, pipeline=PipelineOptions(readers=3, **sizes)) as extractor:
        return list(extractor.extract_all(clips))


def assert_equal(found, expected):
    assert [done.clip for done in found] == [done.clip for done in expected]
    for done, alone in zip(found, expected, strict=True):
        assert (done.error and done.error.code) == (alone.error and alone.error.code)
        if alone.features is not None:
            assert done.features.caption == alone.features.caption
            assert done.features.keyframe_times_s == alone.features.keyframe_times_s
            np.testing.assert_allclose(done.features.vlm, alone.features.vlm, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(done.features.cnn, alone.features.cnn, rtol=1e-4, atol=1e-5)


def test_both_forms_of_the_graphs_give_the_same_on_the_host(toys, toy_bundle, many, tmp_path):
    assert_equal(extracted(toys.write_bundle(tmp_path / "bundle", form=4), many[:8]), extracted(toy_bundle, many[:8]))


@pytest.mark.parametrize("sizes", [{}, {"batch": 4, "captions": 3}, {"batch": 1, "captions": 1}])
def test_a_device_gives_what_the_host_gives(toy_bundle, bundle, many, device, sizes):
    with pytest.MonkeyPatch.context() as host:
        host.setattr(OrtSession, "computes_on_host", True)
        alone = extracted(toy_bundle, many)
    assert_equal(extracted(bundle, many, **sizes), alone)


@pytest.mark.parametrize("extractor", ["clip+slow", "blip-text+resnet3d", "slow-uniform"])
def test_every_kind_of_extractor_runs_on_a_device(toys, many, tmp_path, monkeypatch, extractor):
    bundle = toys.write_bundle(tmp_path / "bundle", extractor=extractor)
    alone = extracted(bundle, many[:8])
    monkeypatch.setattr(OrtSession, "computes_on_host", False)
    assert_equal(extracted(bundle, many[:8], batch=3), alone)


def test_several_captioned_frames_of_a_clip_share_batches(toys, many, tmp_path, monkeypatch):
    bundle = toys.write_bundle(tmp_path / "bundle", captioned_frames=3)
    alone = extracted(bundle, many[:6])
    monkeypatch.setattr(OrtSession, "computes_on_host", False)
    assert_equal(extracted(bundle, many[:6], batch=2, captions=2), alone)


def test_runs_on_a_device_have_few_shapes_within_the_largest(toys, bundle, many, device):
    extracted(bundle, many, captions=6)
    for (graph, name), shapes in device.items():
        rows = {shape[0] for shape in shapes}
        if graph == "keyframes.onnx":
            assert rows <= {32, 64, 128, 256}
        elif graph == "text.onnx":
            assert rows <= {1, 2, 4, 6}, name  # as many as there are places
        else:
            assert rows <= {1, 2, 4, 8}, name
    steps = [
        (past[2], mask[3])
        for past, mask in zip(device["text.onnx", "past_key_00"], device["text.onnx", "mask"], strict=True)
        if past[2]
    ]
    assert set(steps) == {(toys.LONGEST - 1, toys.LONGEST)}  # one window, from the first token to the last
    lengths = {
        ids[1]
        for ids, past in zip(device["text.onnx", "token_ids"], device["text.onnx", "past_key_00"], strict=True)
        if not past[2]
    }
    assert lengths == {12}


def test_a_clip_that_is_not_finite_fails_alone_in_its_batch(toy_bundle, many, device, monkeypatch):
    alone, run_values = extracted(toy_bundle, many[:3]), OrtSession.run_values

    def spoiled(self, feeds, outputs=None, **into):
        found = run_values(self, feeds, outputs, **into)
        if "cnn" in self._shown:
            vectors = found["embedding"].numpy()
            vectors[0] = np.nan
            return {"embedding": self.value(vectors)}
        return found

    monkeypatch.setattr(OrtSession, "run_values", spoiled)
    monkeypatch.setattr(stages, "_COLLECT_S", 1.0)
    with open_extractor(toy_bundle, threads=1, pipeline=PipelineOptions(readers=1, batch=3)) as extractor:
        found = list(extractor.extract_all(many[:3]))
    failed = [done.error for done in found if done.error is not None]
    assert {error.code for error in failed} == {"not_finite"}
    for done, expected in zip(found, alone, strict=True):
        if done.features is not None:
            np.testing.assert_allclose(done.features.cnn, expected.features.cnn, rtol=1e-4)


@pytest.mark.parametrize("graph", ["vision", "text", "cnn", "keyframes"])
def test_a_graph_that_fails_ends_the_extraction_with_its_error(toy_bundle, many, device, monkeypatch, graph):
    run_values = OrtSession.run_values

    def failing(self, feeds, outputs=None, **into):
        if graph in self._shown:
            raise GraphError(f"{graph} failed as it ran", fix="none")
        return run_values(self, feeds, outputs, **into)

    with open_extractor(toy_bundle, threads=1, pipeline=PipelineOptions(readers=2)) as extractor:
        with monkeypatch.context() as broken:
            broken.setattr(OrtSession, "run_values", failing)
            with pytest.raises(GraphError, match=f"{graph} failed as it ran"):
                list(extractor.extract_all(many))
        assert [done.error for done in extractor.extract_all(many[:3])] == [None] * 3
    assert not stage_threads()


def test_finished_clips_come_before_the_error_behind_them():
    ahead = SimpleNamespace(take=lambda timeout: time.sleep(0.01), cancel=lambda: None)
    running = stages.ThreadPerStage(ahead, SimpleNamespace(has_cnn=False, captioner=None, batch=1))
    for each in ("first", GraphError("failed", fix="none"), "behind it"):
        running._finished.put(each)
    assert running.advance(lambda: False) == ["first", "behind it"]
    with pytest.raises(GraphError, match="failed"):
        running.advance(lambda: False)
    running.close()


def test_an_extractor_that_cannot_be_opened_closes_its_graphs(toy_bundle, monkeypatch):
    closed, close = [], extractor_module.GraphOpener.close
    monkeypatch.setattr(
        extractor_module.GraphOpener, "close", lambda self: (closed.append(set(self.placements)), close(self))
    )
    monkeypatch.setattr(extractor_module, "Networks", None)  # fails once vision, text and cnn are open
    with pytest.raises(TypeError):
        open_extractor(toy_bundle, threads=1, pipeline=PipelineOptions(readers=1))
    assert closed == [{"vision", "text", "cnn"}]


@pytest.mark.parametrize(("given", "expected"), [(3, 3), (None, 2)])
def test_threads_of_their_own_come_before_those_of_the_options(toy_bundle, monkeypatch, given, expected):
    seen = []

    def opener(bundle, opening):
        seen.append(opening.threads)
        raise GraphError("far enough", fix="none")

    monkeypatch.setattr(extractor_module, "GraphOpener", opener)
    with pytest.raises(GraphError):
        open_extractor(
            toy_bundle, threads=given, opening=OpeningOptions(threads=2), pipeline=PipelineOptions(readers=1)
        )
    assert seen == [expected]


class FakeReader:
    video = SimpleNamespace(interrupt=lambda: None)

    def read(self, clip):
        return clip

    def close(self):
        pass


def test_clips_in_work_are_counted_by_two_threads_at_once(toy_bundle):
    ahead, count = ReadAhead([FakeReader()]), 3000
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    taker = threading.Thread(target=lambda: [ahead.take(30.0) for _ in range(count)])
    try:
        taker.start()
        for number in range(count):
            ahead.submit(Clip(Path(f"{number}"), f"{number:064}"))
        taker.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(ahead) == 0
    ahead.close()


def stage_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("flamest-reader", "flamest_"))]


def test_an_extraction_left_early_on_a_device_leaves_nothing_behind(toy_bundle, many, device):
    with open_extractor(toy_bundle, threads=1, pipeline=PipelineOptions(readers=2, batch=4)) as extractor:
        first = extractor.extract_all(many)
        one = next(first)
        first.close()
        assert set(stage_threads()) <= {"flamest-reader"}
        (again,) = extractor.extract_all(many[:1])
    assert again.features.vlm.tobytes() == one.features.vlm.tobytes()
    assert not stage_threads()


def test_a_device_takes_only_so_many_clips_ahead(toy_bundle, many, device):
    asked = []

    def coming():
        for number in range(60):
            asked.append(number)
            yield many[number % 3]

    with open_extractor(toy_bundle, threads=1, pipeline=PipelineOptions(readers=1, batch=2, captions=2)) as extractor:
        assert extractor.most_in_work == 1 + 4 * 2 + 2
        for done, _ in enumerate(extractor.extract_all(coming(), in_order=False), 1):
            assert len(asked) - done <= extractor.most_in_work
    assert len(asked) == 60


def test_a_device_that_waits_for_a_clip_stops_when_asked_to(toy_bundle, many, device, monkeypatch):
    monkeypatch.setattr(stages, "FINISH_WITHIN_S", 0.3)
    release = threading.Event()

    def never(self, clip):
        release.wait(30)
        raise DataError("late", fix="none", code="late")

    monkeypatch.setattr(ClipReader, "read", never)
    with open_extractor(toy_bundle, threads=1, pipeline=PipelineOptions(readers=1)) as extractor:
        with pytest.raises(Stopped):
            list(extractor.extract_all(many[:2], stop=lambda: True))
        release.set()


# --- features of the candidates ---


class FakeGraph:
    """features = the mean of each frame; a run may be held up, so that requests pile up behind it."""

    def __init__(self, *, on_host, largest_batch=None):
        self.computes_on_host, self.largest_batch = on_host, largest_batch
        self.runs, self.go_on = [], threading.Event()

    def run(self, feeds, outputs):
        frames = feeds["frames"]
        self.runs.append(len(frames))
        self.go_on.wait(10)
        if (frames == 255).any():
            raise GraphError("too bright", fix="none")
        return {"features": frames.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]}


def features_of_many(graph, requests, **options):
    features, found = KeyframeFeatures(graph, **options), {}

    def ask(number, pixels):
        try:
            found[number] = features.of(SimpleNamespace(pixels=pixels))
        except GraphError as error:
            found[number] = error

    threads = [threading.Thread(target=ask, args=each) for each in enumerate(requests)]
    for thread in threads:
        thread.start()
        deadline = time.monotonic() + 10
        while not graph.runs and time.monotonic() < deadline:
            time.sleep(0.001)  # the first one alone runs the graph; the others queue behind it
    while len(features._waiting) < len(requests) - 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    graph.go_on.set()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(requests))]


CANDIDATES = [np.full((count, 2, 2, 3), 7 * count, np.uint8) for count in (32, 10, 32, 1, 32, 32)]


def test_clips_that_wait_for_features_share_a_run_on_a_device():
    graph = FakeGraph(on_host=False, largest_batch=96)
    for found, pixels in zip(features_of_many(graph, CANDIDATES, clips=8, candidates=32), CANDIDATES, strict=True):
        np.testing.assert_array_equal(found, pixels.mean(axis=(1, 2, 3), dtype=np.float32)[:, None])
    assert graph.runs == [32, 96, 32]  # the first alone; 10 + 32 + 1 + 32, rounded up to the largest; the last


def test_on_the_host_each_clip_has_a_run_of_its_own():
    graph = FakeGraph(on_host=True)
    features_of_many(graph, CANDIDATES)
    assert sorted(graph.runs) == sorted(map(len, CANDIDATES))


def test_an_error_of_a_run_is_that_of_each_of_its_clips():
    graph = FakeGraph(on_host=False)
    bright = [*CANDIDATES[:2], np.full((32, 2, 2, 3), 255, np.uint8)]
    first, *rest = features_of_many(graph, bright, clips=8, candidates=32)
    assert len(first) == 32
    assert [str(error) for error in rest] == ["too bright"] * 2


# --- sizes ---


@pytest.mark.parametrize(
    ("cores", "memory_gb", "gpu_mb", "expected"),
    [
        (1, 4, None, PipelineSizes(1, 1, 4)),
        (64, 512, None, PipelineSizes(3, 1, 4)),  # a CPU's networks take the cores
        (16, 128, 143_771, PipelineSizes(15, 32, 128)),  # H200
        (192, 1024, 81_559, PipelineSizes(64, 32, 128)),
        (64, 16, 24_576, PipelineSizes(23, 16, 64)),  # readers: half of the memory
        (8, 32, 8_192, PipelineSizes(7, 8, 16)),
        (1, 2, 4_096, PipelineSizes(1, 4, 8)),
    ],
)
def test_sizes_follow_from_cores_and_memory(cores, memory_gb, gpu_mb, expected):
    machine = PipelineMachine(cores, memory_gb << 30, gpu_mb, caption_bytes=42_000_000)
    assert choose_sizes(PipelineOptions(), machine) == expected


def test_requested_sizes_come_first_and_workers_share_the_memory():
    machine = PipelineMachine(64, 64 << 30, 24_576)
    assert choose_sizes(PipelineOptions(5, 6, 7), machine) == PipelineSizes(5, 6, 7)
    alone, shared = (choose_sizes(PipelineOptions(workers=count), machine).readers for count in (1, 4))
    assert shared == alone // 4 or shared == (64 << 29) // 4 // (356 << 20)


def test_rows_on_a_device_are_rounded_up_to_powers_of_two():
    assert [rounded_up(count) for count in (0, 1, 2, 3, 5, 16, 17)] == [0, 1, 2, 4, 8, 16, 32]
