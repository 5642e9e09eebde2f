"""Run per TensorRT version by test_runner.py: a session over strict stand-ins that do compute.

The stand-in engine is a caption step: present = past and the token one after the other, logits = the sum of
both. It runs on fake_cuda.py's memory and streams, so what is read, written, ordered and replayed is really checked.
"""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorrt as trt
from flamest.base.errors import FlamestError, InvariantError
from flamest.base.files import sha256_bytes
from flamest.runtime.backends.tensorrt import contexts
from flamest.runtime.backends.tensorrt.cuda_device import CudaDevice, DeviceValue
from flamest.runtime.backends.tensorrt.engine import EngineFile, LoadedEngine, load_engine
from flamest.runtime.backends.tensorrt.package import TensorRtLog
from flamest.runtime.backends.tensorrt.runner import TensorRtSession
from tensorrt_fakes import Fakes

sys.path.insert(0, str(Path(__file__).parent))
from fake_cuda import FakeCuda, cudaError_t
from fake_engine import EngineSpec, FakeEngine

W = 2  # width of a token's key
STEP = {"token_ids": [(1, 1), (2, 1), (4, 1)], "past": [(1, 0, W), (2, 8, W), (4, 16, W)]}


def grown(shapes):
    (batch, tokens), (_, past, width) = shapes["token_ids"], shapes["past"]
    return {"logits": (batch,), "present": (batch, past + tokens, width)}


def grow(feeds):
    token, before = feeds["token_ids"], feeds["past"]
    rows = np.broadcast_to(token[:, :, None], (*token.shape, W)).astype(np.float32)
    present = np.concatenate([before, rows], axis=1)
    return {"logits": present.sum(axis=(1, 2), dtype=np.float32), "present": present}


INPUTS = {"token_ids": "INT64", "past": "FLOAT"}
CAPTION_STEP = EngineSpec(INPUTS, {"logits": "FLOAT", "present": "FLOAT"}, [STEP], grown, grow)


class Step:
    """An engine on a GPU, both of Python."""

    def __init__(self, spec=CAPTION_STEP, *, cuda=None, number=0):
        self.fakes, self.cuda = Fakes(), cuda or FakeCuda()
        self.device = CudaDevice(self.cuda, number=number)
        self.fake = FakeEngine(trt, self.fakes, self.cuda, spec)

    def session(self, **options):
        return self.session_on(self.fake, **options)

    def session_on(self, fake, **options):
        opened = LoadedEngine(fake.engine, TensorRtLog(), ())
        return TensorRtSession(trt, opened, self.device, name="text", where="TensorRT on a stand-in", **options)

    def another(self, spec):
        return self.session_on(FakeEngine(trt, self.fakes, self.cuda, spec))

    @property
    def launched(self):
        return self.fake.launched

    def check(self):
        self.cuda.cudaSetDevice(self.device.number)
        self.cuda.finish()
        self.fakes.check()


@pytest.fixture
def step():
    made = Step()
    yield made
    made.check()


def caption(session, tokens):
    """Feed ``tokens`` one by one, each step's present being the next one's past; the logits and the last past."""
    past = session.value(np.empty((1, 0, W), np.float32))
    logits = []
    for token in tokens:
        values = session.run_values({"token_ids": np.array([[token]]), "past": past}, ["logits", "present"])
        past = values["present"]
        logits.append(float(values["logits"].numpy()[0]))
    return logits, past


def test_the_names_and_the_usual_sizes_are_the_engines(step):
    session = step.session()
    assert (session.inputs, session.outputs) == (("token_ids", "past"), ("logits", "present"))
    assert session.usual == {"token_ids": ((2, 1), np.int64), "past": ((2, 8, W), np.float32)}
    assert (session.where, session.largest_batch) == ("TensorRT on a stand-in", 4)
    single = {name: [(1, *sizes[1:]) for sizes in ranges] for name, ranges in STEP.items()}
    assert step.another(EngineSpec(INPUTS, CAPTION_STEP.outputs, [single], grown, grow)).largest_batch == 1


def test_the_cache_stays_on_the_device_from_step_to_step(step):
    session = step.session()
    step.cuda.calls.clear()
    logits, past = caption(session, [3, 4, 5])
    assert logits == [6.0, 14.0, 24.0]
    np.testing.assert_array_equal(past.numpy(), [[[3, 3], [4, 4], [5, 5]]])
    # Up: a token a step (the empty past is nothing to copy). Down: the logits of each step, and the past once.
    assert step.cuda.calls.count("cudaMemcpyAsync") == 3 + 3 + 1


def test_repeated_captions_allocate_nothing(step):
    session = step.session()
    for _ in range(2):
        caption(session, range(16))
    step.cuda.calls.clear()
    for _ in range(3):
        caption(session, range(16))
    assert not {"cudaMalloc", "cudaHostAlloc", "cudaFree"} & set(step.cuda.calls)


def test_the_largest_sizes_of_the_profile_run(step):
    session = step.session()
    values = session.run({"token_ids": np.array([[1], [2], [3], [4]]), "past": np.ones((4, 16, W), np.float32)})
    np.testing.assert_array_equal(values["logits"], [34, 36, 38, 40])
    assert values["present"].shape == (4, 17, W)


def test_a_result_is_not_changed_by_later_runs(step):
    session = step.session()
    feeds = {"token_ids": np.array([[1]]), "past": np.zeros((1, 1, W), np.float32)}
    first = session.run_values(feeds)
    for token in range(2, 9):
        session.run_values({**feeds, "token_ids": np.array([[token]])})
    np.testing.assert_array_equal(first["present"].numpy(), [[[0, 0], [1, 1]]])


CAPTIONS = ([1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 5, 9], [2, 2, 2])


def test_without_a_verdict_nothing_is_captured(step):
    session = step.session()
    for tokens in CAPTIONS:
        caption(session, tokens)
    assert "cudaStreamBeginCapture" not in step.cuda.calls


def test_repeated_runs_are_replayed_with_the_same_result(step):
    session, plain = step.session(cuda_graphs=True), Step().session()
    results = [caption(session, tokens)[0] for tokens in CAPTIONS]
    launched = step.launched
    again = [caption(session, tokens)[0] for tokens in ([1, 2, 3], [9, 9, 9])]
    assert step.launched == launched  # replayed: TensorRT was not asked
    assert "cudaGraphLaunch" in step.cuda.calls
    expected = [caption(plain, tokens)[0] for tokens in CAPTIONS]
    assert results == expected
    assert again == [expected[0], caption(plain, [9, 9, 9])[0]]


def test_each_captured_graph_has_a_context_that_stays_as_it_was(step):
    # The fake engine fails where a context is changed after its capture, as the plain one is at every step.
    session = step.session(cuda_graphs=True)
    for tokens in (*CAPTIONS, *CAPTIONS, [1, 2], [1, 2, 3, 4, 5], [1, 2, 3]):
        caption(session, tokens)
    captured = [context for context in step.fake.contexts if context.captured]
    assert len(captured) == len(step.cuda.executables) > 2
    assert len({context.memory for context in step.fake.contexts}) == 1  # one scratch memory for all
    assert sum(not context.captured for context in step.fake.contexts) == 1


def test_few_graphs_are_kept_and_the_oldest_is_destroyed(step, monkeypatch):
    monkeypatch.setattr(contexts, "MAX_CAPTURED_GRAPHS", 2)
    session = step.session(cuda_graphs=True)
    for _ in range(30):
        caption(session, [1, 2, 3, 4])
    assert len(step.cuda.executables) == 2
    assert caption(session, [1, 2, 3, 4])[0] == caption(Step().session(), [1, 2, 3, 4])[0]


CAPTURE_STEPS = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy")


@pytest.mark.parametrize("fails", [*CAPTURE_STEPS, "cudaGraphLaunch", "create_execution_context", "execute_async_v3"])
def test_where_capturing_fails_runs_go_on_without_graphs(step, fails):
    session = step.session(cuda_graphs=True)
    expected = caption(session, [1, 2, 3])[0]
    if fails == "create_execution_context":
        step.fake.fails[fails] = None
    elif fails == "execute_async_v3":
        step.fake.fails_in_capture = True
    else:
        step.cuda.fails[fails] = cudaError_t.cudaErrorStreamCaptureInvalidated
    assert all(caption(session, [1, 2, 3])[0] == expected for _ in range(6))
    assert step.cuda.last_error == 0
    if fails == "cudaGraphDestroy":
        step.cuda.graphs.clear()  # that call did nothing
        return
    assert step.cuda.graphs == step.cuda.executables == []
    assert step.cuda.calls.count("cudaStreamBeginCapture") <= 1 + 2 * (fails == "cudaGraphLaunch")  # not tried again


def test_a_context_that_failed_half_set_is_not_used_again(step):
    session = step.session()
    caption(session, [1])
    for method in ("set_tensor_address", "execute_async_v3", "set_input_shape"):
        step.fake.fails[method] = False
        with pytest.raises(FlamestError):
            caption(session, [1, 2, 3])
        step.fake.fails.clear()
        before = len(step.fake.contexts)
        assert caption(session, [1, 2, 3])[0] == [2.0, 6.0, 12.0]
        assert len(step.fake.contexts) == before + 1


def test_closing_gives_everything_back(step):
    session = step.session(cuda_graphs=True)
    for _ in range(4):
        _, past = caption(session, [1, 2, 3])
    session.close()
    session.close()
    assert step.cuda.executables == []
    np.testing.assert_array_equal(past.numpy(), [[[1, 1], [2, 2], [3, 3]]])
    del past
    gc.collect()
    step.device.memory.trim()
    assert step.cuda.memory == {}
    with pytest.raises(InvariantError, match="was closed"):
        caption(session, [1])
    assert caption(step.session(), [1, 2])[0] == [2.0, 6.0]


@pytest.mark.parametrize(
    ("tokens", "past"), [((5, 1), (5, 1, 2)), ((1, 1), (1, 17, 2)), ((1, 1), (1, 1, 3)), ((1, 1), (1, 2))]
)
def test_a_shape_outside_the_profile_launches_nothing(step, tokens, past):
    session = step.session()
    with pytest.raises(FlamestError, match="graph 'text': input") as caught:
        session.run({"token_ids": np.ones(tokens, np.int64), "past": np.ones(past, np.float32)})
    assert (caught.value.code, caught.value.exit_code) == ("PROFILE_RANGE", 65)
    assert step.launched == 0


READ = {"token_ids": [(1, 2), (2, 6), (4, 8)], "past": [(1, 0, W), (2, 0, W), (4, 0, W)]}
ONE = {"token_ids": [(1, 1), (1, 2), (4, 8)], "past": [(1, 0, W), (1, 8, W), (4, 16, W)]}
USES = EngineSpec(INPUTS, CAPTION_STEP.outputs, [STEP, READ, ONE], grown, grow)


@pytest.mark.parametrize(
    ("tokens", "past", "profile"),
    [((2, 1), (2, 8, W), 0), ((4, 1), (4, 16, W), 0), ((2, 6), (2, 0, W), 1), ((1, 5), (1, 0, W), 1),
     ((1, 2), (1, 8, W), 2), ((1, 2), (1, 3, W), 2), ((4, 8), (4, 16, W), 2)],
)  # fmt: skip
def test_a_run_uses_the_profile_whose_usual_shapes_are_nearest(tokens, past, profile):
    step = Step(USES)
    session = step.session(cuda_graphs=True)
    feeds = {"token_ids": np.ones(tokens, np.int64), "past": np.ones(past, np.float32)}
    for _ in range(4):
        session.run({"token_ids": np.ones((1, 1), np.int64), "past": np.ones((1, 8, W), np.float32)})
        np.testing.assert_array_equal(session.run(feeds)["present"], np.ones((tokens[0], tokens[1] + past[1], W)))
    assert {context.profile for context in step.fake.contexts if context.shapes["past"] == past} == {profile}
    step.check()


def test_shapes_that_no_profile_allows_name_each(step):
    session = Step(USES).session()
    with pytest.raises(FlamestError, match=r"profile 0: .*; profile 1: .*; profile 2: ") as caught:
        session.run({"token_ids": np.ones((1, 9), np.int64), "past": np.ones((1, 1, W), np.float32)})
    assert caught.value.code == "PROFILE_RANGE"


LAYERS = ("past_0", "past_1", "past_2")


def many(batch_past):
    return {name: [(1, 0, W), batch_past, (4, 16, W)] for name in LAYERS}


def last_of_each(feeds):
    new = np.broadcast_to(feeds["token_ids"][:, :, None], (len(feeds["token_ids"]), 1, W))
    moved = {name: np.concatenate([feeds[name], new.astype(feeds[name].dtype)], axis=1) for name in LAYERS}
    present = {name.replace("past", "present"): moved[name][:, 1:] for name in LAYERS}
    return {**present, "next_token": feeds["token_ids"][:, 0] + 1}


WINDOW = EngineSpec(
    {"token_ids": "INT64", **dict.fromkeys(LAYERS, "HALF")},
    {**dict.fromkeys((name.replace("past", "present") for name in LAYERS), "HALF"), "next_token": "INT64"},
    [{"token_ids": [(1, 1), (2, 1), (4, 1)], **many((2, 8, W))}],
    lambda shapes: {
        **{name.replace("past", "present"): shapes[name] for name in LAYERS},
        "next_token": shapes["token_ids"][:1],
    },
    last_of_each,
)


def test_every_empty_tensor_has_an_address_of_its_own():
    # The caller gives one empty value for all layers; TensorRT's guide asks for an address each.
    step = Step(WINDOW)
    session = step.session()
    empty = session.value(np.empty((2, 0, W), np.float16))
    values = session.run_values({"token_ids": np.ones((2, 1), np.int64), **dict.fromkeys(LAYERS, empty)})
    assert values["present_0"].numpy().shape == (2, 0, W)
    context = step.fake.contexts[0]
    names = [*LAYERS, *(name.replace("past", "present") for name in LAYERS)]
    assert len({context.addresses[name] for name in names}) == len(names)
    step.check()


def test_a_window_goes_from_rows_to_rows_and_its_graphs_are_reused():
    step = Step(WINDOW)
    session = step.session(cuda_graphs=True)
    halves = [{name: session.rows(name, (4, 3, W)) for name in LAYERS} for _ in range(2)]
    expected = np.zeros((4, 3, W), np.float16)
    for token in range(12):
        past, present = halves[token % 2], halves[1 - token % 2]
        feeds = {"token_ids": np.full((4, 1), token), **{name: rows.first(4) for name, rows in past.items()}}
        into = {name.replace("past", "present"): rows for name, rows in present.items()}
        values = session.run_values(feeds, into=into)
        assert values["present_1"].pointer == present["past_1"].first(4).pointer
        expected = np.concatenate([expected[:, 1:], np.full((4, 1, W), token, np.float16)], axis=1)
        np.testing.assert_array_equal(values["next_token"].numpy(), [token + 1] * 4)
    np.testing.assert_array_equal(present["past_2"].first(4).numpy(), expected)
    assert len(step.cuda.executables) == 2  # one for each direction
    assert step.cuda.calls.count("cudaGraphLaunch") == session.replays == 12 - 4
    step.check()


def test_rows_are_put_copied_and_cleared_in_order_with_runs():
    step = Step(WINDOW)
    vision = step.another(
        EngineSpec(
            {"pixels": "UINT8"}, {"key": "HALF"}, [{"pixels": [(1, 2), (1, 2), (4, 2)]}],
            lambda shapes: {"key": (shapes["pixels"][0], 3, W)},
            lambda feeds: {"key": np.repeat(feeds["pixels"][:, None], 3, axis=1).astype(np.float16)},
        )
    )  # fmt: skip
    session = step.session()
    rows = {name: session.rows(name, (4, 3, W)) for name in LAYERS}
    np.testing.assert_array_equal(rows["past_0"].first(4).numpy(), np.zeros((4, 3, W)))
    shown = []
    for image in range(1, 7):
        key = vision.run_values({"pixels": np.array([[image, 100 + image], [7, 7]], np.uint8)})["key"]
        for one in rows.values():
            one.put(image % 2, key, 0)
            one.copy(3, image % 2)
        feeds = {name: one.first(4) for name, one in rows.items()}
        shown.append(session.run_values({"token_ids": np.zeros((4, 1), np.int64), **feeds})["present_1"])
        rows["past_1"].clear(3)
    for image, value in enumerate(shown, 1):
        past = value.numpy()[:, 0]
        np.testing.assert_array_equal(past[image % 2], [image, 100 + image])
        np.testing.assert_array_equal(past[3], [image, 100 + image])
        np.testing.assert_array_equal(past[2], [0, 0])
    np.testing.assert_array_equal(rows["past_1"].first(4).numpy()[3], np.zeros((3, W)))
    step.check()


def test_rows_outlive_their_name_while_a_value_shows_them():
    step = Step(WINDOW)
    session = step.session()
    rows = session.rows("past_0", (2, 3, W))
    rows.put(1, np.full((1, 3, W), 5, np.float16), 0)
    shown = rows.first(2)
    del rows
    gc.collect()
    other = session.rows("past_0", (2, 3, W))
    assert other.first(2).pointer != shown.pointer
    np.testing.assert_array_equal(shown.numpy()[1], np.full((3, W), 5))
    step.check()


def test_rows_that_do_not_fit_are_an_invariant_error():
    step = Step(WINDOW)
    session = step.session()
    past = {name: session.rows(name, (2, 3, W)) for name in LAYERS}
    feeds = {"token_ids": np.ones((2, 1), np.int64), **{name: rows.first(2) for name, rows in past.items()}}
    for into, message in (
        ({"present_0": session.rows("past_0", (1, 3, W))}, r"is float16 \[2, 3, 2\], the rows are float16 \[1, 3, 2\]"),
        ({"present_0": session.rows("past_0", (2, 4, W))}, "the rows are"),
        ({"next_token": session.rows("past_0", (2, 3, W))}, "the rows are"),
        ({"present_0": past["past_1"]}, "that the same run reads or writes"),
        ({"nothing": past["past_1"]}, "does not exist"),
    ):
        with pytest.raises(InvariantError, match=message):
            session.run_values(feeds, into=into)
    with pytest.raises(InvariantError, match="row 2 of 2"):
        past["past_0"].clear(2)
    with pytest.raises(InvariantError, match="3 rows of 2"):
        past["past_0"].first(3)
    assert step.launched == 0
    step.check()


BF16 = EngineSpec(
    {"key": "BF16"}, {"double": "BF16"}, [{"key": [(1, 2), (1, 2), (4, 2)]}],
    lambda shapes: {"double": shapes["key"]},
    lambda feeds: {"double": feeds["key"] + (1 << 7)},  # of the exponent, in bits
)  # fmt: skip


def test_bfloat16_has_its_own_type_and_numpy_sees_floats():
    step = Step(BF16)
    session = step.session()
    rows = session.rows("key", (2, 2))
    assert (rows.dtype.name, rows.dtype.itemsize) == ("bfloat16", 2)
    rows.put(0, np.array([[1.5, -3.0]], np.float32), 0)
    rows.put(1, np.array([[1.0 + 2**-9, 8.0]], np.float32), 0)  # the first is rounded
    values = session.run_values({"key": rows.first(2)})
    np.testing.assert_array_equal(values["double"].numpy(), np.array([[3.0, -6.0], [2.0, 16.0]], np.float32))
    assert values["double"].bits().dtype == np.uint16
    again = session.run_values({"key": session.value(np.array([[2.5, 4.0]], np.float32))})  # rounded on the host
    np.testing.assert_array_equal(again["double"].numpy(), [[5.0, 8.0]])
    with pytest.raises(InvariantError, match="key is float64, expected bfloat16"):
        session.run({"key": np.ones((1, 2))})
    step.check()


LARGE = 1 << 17
BIG = EngineSpec(
    {"frames": "UINT8"}, {"sum": "INT64"}, [{"frames": [(1, LARGE), (1, LARGE), (2, LARGE)]}],
    lambda shapes: {"sum": shapes["frames"][:1]},
    lambda feeds: {"sum": feeds["frames"].sum(axis=1, dtype=np.int64)},
)  # fmt: skip


def test_a_batch_is_copied_while_the_one_before_computes():
    step = Step(BIG)
    session = step.session()
    frames = np.empty((1, LARGE), np.uint8)
    sums = []
    for value in range(12):
        frames[:] = value  # the caller's memory is its own again after each run
        sums.append(session.run_values({"frames": frames})["sum"])
        if value == 1:
            # Nothing waited on the host, and the copies are on a stream of their own.
            assert not {"cudaStreamSynchronize", "cudaEventSynchronize"} & set(step.cuda.calls)
            streams = {stream.handle for stream in step.cuda._streams.values() if stream.works}
            assert len(streams) == 2
    assert [int(value.numpy()[0]) for value in sums] == [value * LARGE for value in range(12)]
    step.check()


def test_values_pass_between_sessions_and_are_freed_in_order():
    # Each stage has a stream; blocks go round while the other stage's work on them is still to be done.
    step = Step(BIG)
    first = step.session()
    second = step.another(
        EngineSpec(
            {"sum": "INT64"}, {"next": "INT64"}, [{"sum": [(1,), (1,), (2,)]}],
            lambda shapes: {"next": shapes["sum"]}, lambda feeds: {"next": feeds["sum"] + 1},
        )
    )  # fmt: skip
    results = []
    for value in range(20):
        middle = first.run_values({"frames": np.full((1, LARGE), value, np.uint8)})["sum"]
        results.append(second.run_values({"sum": middle})["next"])
        del middle
    assert [int(value.numpy()[0]) for value in results] == [value * LARGE + 1 for value in range(20)]
    assert sum(len(memory.content) == 512 for memory in step.cuda.memory.values()) < 60
    step.check()


def test_sessions_run_from_several_threads():
    step = Step(BIG)
    sessions = [step.session(), step.another(BIG), step.another(CAPTION_STEP)]
    failures = []

    def work(seed):
        try:
            for value in range(10):
                got = sessions[seed % 2].run({"frames": np.full((1, LARGE), value + seed, np.uint8)})["sum"]
                assert got.tolist() == [(value + seed) * LARGE]
                assert caption(sessions[2], [seed, value])[0] == [2.0 * seed, 2.0 * (seed + value)]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    step.check()


def test_every_call_sets_its_gpu_whatever_thread_it_comes_from():
    # CUDA's current device is a setting of the thread, 0 at first.
    cuda = FakeCuda(devices=2)
    zero, one = Step(WINDOW, cuda=cuda), Step(WINDOW, cuda=cuda, number=1)
    sessions = [zero.session(), one.session(cuda_graphs=True)]
    results, failures = {}, []

    def work(index):
        try:
            session = sessions[index]
            rows = {name: session.rows(name, (1, 3, W)) for name in LAYERS}
            rows["past_0"].put(0, np.ones((1, 3, W), np.float16), 0)
            rows["past_1"].clear(0)
            feeds = {name: one.first(1) for name, one in rows.items()}
            runs = [session.run_values({"token_ids": np.full((1, 1), index), **feeds}) for _ in range(4)]
            results[index] = runs[-1]
        except BaseException as error:
            failures.append(error)

    for index in (0, 1, 0, 1):
        thread = threading.Thread(target=work, args=(index,))
        thread.start()
        thread.join(60)
    assert failures == []
    for index in (1, 0):
        assert results[index]["next_token"].numpy().tolist() == [index + 1]
    moved = sessions[0].value(results[1]["present_0"])
    np.testing.assert_array_equal(moved.numpy(), results[1]["present_0"].numpy())
    assert {memory.device for memory in cuda.memory.values()} == {0, 1}
    closing = threading.Thread(target=sessions[1].close)
    closing.start()
    closing.join(60)
    assert cuda.executables == cuda.problems == []


def test_a_value_of_another_device_goes_through_the_host(step):
    other = CudaDevice(FakeCuda())
    foreign = Step(BF16)
    foreign = foreign.session().value(np.full((1, 1, W), 5, np.float32))
    assert foreign.device is not other
    session = step.session()
    moved = session.value(foreign)
    assert isinstance(moved, DeviceValue)
    assert moved.device is step.device
    assert session.value(moved) is moved
    got = session.run({"token_ids": np.array([[1]]), "past": foreign}, ["logits"])
    np.testing.assert_array_equal(got["logits"], [12])


def test_an_input_of_another_type_or_none_is_an_invariant_error(step):
    session = step.session()
    with pytest.raises(InvariantError, match="token_ids is float32, expected int64"):
        session.run({"token_ids": np.ones((1, 1), np.float32), "past": np.ones((1, 1, W), np.float32)})
    with pytest.raises(InvariantError, match="past is not given"):
        session.run({"token_ids": np.ones((1, 1), np.int64)})


def test_a_full_gpu_frees_what_is_not_used_before_it_fails(step):
    session = step.session()
    step.cuda.limit = 52_000
    for width in (1000, 2000, 3000, 4000):  # each of another size, together more than there is
        session.value(np.zeros((2, width), np.float32))
    kept = [session.value(np.zeros((1, 4000), np.float32)) for _ in range(2)]
    with pytest.raises(FlamestError) as caught:
        session.value(np.zeros((1, 4000), np.float32))
    assert caught.value.code == "GPU_MEMORY"
    assert "--batch" in caught.value.fix
    assert "MiB are free" in caught.value.message
    assert all(not value.numpy().any() for value in kept)


def test_a_context_that_finds_no_memory_gets_what_is_not_used(step):
    session = step.session()
    session.value(np.zeros((1, 4000), np.float32))
    make, answers = step.fake._make_context, iter([None])
    step.fake.engine.create_execution_context.side_effect = lambda strategy: next(answers, make(strategy))
    assert caption(session, [1])[0] == [2.0]
    assert "cudaFree" in step.cuda.calls


def test_a_launch_that_fails_has_its_code(step):
    session = step.session()
    step.fake.fails["execute_async_v3"] = False
    with pytest.raises(FlamestError, match="did not launch") as caught:
        caption(session, [1])
    assert caught.value.code == "BACKEND_FAILED"
    step.fake.fails["create_execution_context"] = None
    with pytest.raises(FlamestError) as caught:
        caption(session, [1])
    assert caught.value.code == "GPU_MEMORY"


PLAN, ONNX = b"native code", b"an ONNX graph"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An engine's file, and TensorRT's objects that open it."""
    (tmp_path / "text.plan").write_bytes(PLAN)
    (tmp_path / "text.onnx").write_bytes(ONNX)
    fakes = Fakes()
    engine = fakes.make("ICudaEngine")
    runtime = fakes.make("Runtime", **{"deserialize_cuda_engine.return_value": engine})
    refitter = fakes.make(
        "Refitter", **{"get_missing_weights.return_value": [], "refit_cuda_engine.return_value": True}
    )
    parser = fakes.make("OnnxParserRefitter", **{"refit_from_bytes.return_value": True, "num_errors": 0})
    for name, fake in (("Runtime", runtime), ("Refitter", refitter), ("OnnxParserRefitter", parser)):
        monkeypatch.setattr(trt, name, fakes.constructor(name, fake))
    file = EngineFile("text", tmp_path / "text.plan", sha256_bytes(PLAN))
    stripped = EngineFile("text", file.path, file.sha256, tmp_path / "text.onnx", sha256_bytes(ONNX))
    yield fakes, file, stripped, runtime, refitter, parser
    fakes.check()


def refused(file):
    with pytest.raises(FlamestError) as caught:
        load_engine(trt, file)
    return caught.value


def test_a_stripped_engine_gets_the_weights_of_its_graph(files):
    fakes, file, stripped, runtime, *_ = files
    load_engine(trt, file)
    assert not any(call.startswith(("Refitter", "OnnxParserRefitter")) for call in fakes.calls)
    runtime.deserialize_cuda_engine.assert_called_once_with(PLAN)
    load_engine(trt, stripped)
    assert [call for call in fakes.calls if "efitter." in call] == [
        "OnnxParserRefitter.refit_from_bytes",
        "Refitter.get_missing_weights",
        "Refitter.refit_cuda_engine",
    ]


def test_host_code_is_allowed_for_version_compatible_engines_only(files):
    _, file, _, runtime, *_ = files
    runtime.engine_host_code_allowed = False
    load_engine(trt, file)
    assert runtime.engine_host_code_allowed is False
    load_engine(trt, EngineFile("text", file.path, file.sha256, host_code=True))
    assert runtime.engine_host_code_allowed is True


def test_no_engine_and_an_exception_are_rejections(files):
    _, file, _, runtime, *_ = files
    runtime.deserialize_cuda_engine.return_value = None
    assert refused(file).code == "PLAN_REJECTED"
    runtime.deserialize_cuda_engine.side_effect = RuntimeError("bad magic")
    error = refused(file)
    assert error.code == "PLAN_REJECTED"
    assert "RuntimeError: bad magic" in error.message


def test_a_file_with_another_hash_never_reaches_tensorrt(files):
    fakes, file, stripped, *_ = files
    file.path.write_bytes(PLAN + b"!")
    error = refused(file)
    assert (error.code, error.exit_code) == ("UNTRUSTED", 65)
    assert fakes.calls == []
    file.path.write_bytes(PLAN)
    stripped.onnx.write_bytes(b"another graph")
    assert refused(stripped).code == "UNTRUSTED"
    assert not any("refit" in call for call in fakes.calls)


@pytest.mark.parametrize("breaks", ["parse", "missing", "refit"])
def test_weights_that_do_not_fit_are_an_error(files, breaks):
    fakes, _, stripped, _, refitter, parser = files
    if breaks == "parse":
        problem = fakes.make("IParserError" if hasattr(trt, "IParserError") else "ParserError")
        problem.desc.return_value = "no such weight"
        parser.configure_mock(**{"refit_from_bytes.return_value": False, "num_errors": 1})
        parser.get_error.return_value = problem
    elif breaks == "missing":
        refitter.get_missing_weights.return_value = ["encoder.weight"]
    else:
        refitter.refit_cuda_engine.return_value = False
    error = refused(stripped)
    assert error.code == "PLAN_REFIT"
    assert "without --strip-weights" in error.fix
    if breaks != "refit":
        assert ("no such weight" if breaks == "parse" else "encoder.weight") in error.message
