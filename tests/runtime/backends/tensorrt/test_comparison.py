"""An engine is compared with its ONNX graph: twenty planted faults are found, and rounding is no fault."""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from flamest.base.errors import FlamestError
from flamest.runtime.backends.bf16_emulation import emulate_fp16
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.session import on_host
from flamest.runtime.backends.tensorrt import comparison
from flamest.runtime.backends.tensorrt.cache import VERDICT_FORM, VerdictKey, open_cache
from flamest.runtime.backends.tensorrt.comparison import ComparedGraph, compare_engine
from flamest.runtime.backends.tensorrt.comparison_inputs import compared_settings
from flamest.runtime.backends.tensorrt.profile import graph_uses
from flamest.runtime.backends.tensorrt.verdicts import keep_verdict
from flamest.runtime.backends.unavailable import Code, unavailable
from flamest.runtime.bundle.graph_records import EngineOptions


def load(name):
    spec = importlib.util.spec_from_file_location(f"flamest_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


graphs = load("small_graphs")
MAKERS = {"vision": graphs.vision, "text": graphs.text, "cnn": graphs.cnn}


def subject(name, *, tf32=False, **how):
    record, model = MAKERS[name](**how)
    source = graphs.vision() if name == "text" else None
    return ComparedGraph(name, record, model, EngineOptions(tf32=tf32), graphs.WORDS, source)


class Held:
    def __init__(self, array):
        self._array = array

    def numpy(self):
        return self._array


class Engine:
    """A session over ONNX Runtime whose results ``fault`` changes."""

    where, computes_on_host, largest_batch = "an engine of the test", True, None

    def __init__(self, model, fault, cuda_graphs):
        self._session, self._fault = open_session(model, threads=1), fault
        self.inputs, self.outputs = self._session.inputs, self._session.outputs
        self.rows, self.value = self._session.rows, self._session.value
        self.cuda_graphs, self.replays = cuda_graphs, 0
        self.runs = collections.Counter()  # by shapes
        self.last = None  # feeds and outputs of the run before
        self.seen = set()

    def replayed(self, shapes):
        """True if the run was a replay: from the third of its shapes on."""
        return self.cuda_graphs and self.runs[shapes] > 2

    def compute(self, feeds):
        return self._session.run(feeds)

    def run_values(self, feeds, outputs=None, *, into=None):
        given = {name: np.array(on_host(feed)) for name, feed in feeds.items()}
        found = self._fault(self, given)
        shapes = tuple(array.shape for array in given.values())
        self.runs[shapes] += 1
        self.replays += self.replayed(shapes)
        self.last = (given, found)
        return {name: Held(array) for name, array in found.items()}


def right(engine, feeds):
    return engine.compute(feeds)


def with_feeds(change):
    return lambda engine, feeds: engine.compute(feeds | change(feeds))


def with_outputs(change):
    def fault(engine, feeds):
        found = engine.compute(feeds)
        return found | change(found, feeds)

    return fault


def swapped(first, second):
    return lambda arrays, *_: {first: arrays[second], second: arrays[first]}


def stale_shape(engine, feeds):
    """Runs the kernels of the shape before: what does not fit is cut off or left at zero."""
    found = engine.compute(feeds)
    if engine.last is None:
        return found
    _, before = engine.last

    def fitted(old, new):
        made = np.zeros_like(new)
        common = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
        made[common] = old[common]
        return made

    same = all(before[name].shape == found[name].shape for name in found)
    return found if same else {name: fitted(before[name], found[name]) for name in found}


def old_data(engine, feeds):
    """A replay that reads the buffers of the run that was captured."""
    key = tuple(array.shape for array in feeds.values())
    if engine.cuda_graphs and key in engine.seen:
        return engine.kept[key]
    engine.seen.add(key)
    engine.kept = {**getattr(engine, "kept", {}), key: engine.compute(feeds)}
    return engine.kept[key]


def last_batch(engine, feeds):
    """Results of the run before, where they have the right shape."""
    found = engine.compute(feeds)
    before = engine.last[1] if engine.last else found
    fits = all(before[name].shape == found[name].shape for name in found)
    engine.true = getattr(engine, "true", None)
    shown = engine.true if engine.true and all(engine.true[n].shape == found[n].shape for n in found) else found
    engine.true = found
    return shown if fits else found


def one_row(row, when=lambda count: count > 1):
    """Row ``row`` gets its neighbour's result."""

    def change(found, feeds):
        count = len(next(iter(found.values())))
        if not when(count):
            return {}
        return {name: np.concatenate([array[:row % count], array[[row % count - 1]], array[row % count + 1 :]])
                for name, array in found.items()}  # fmt: skip

    return with_outputs(change)


def few_bits(bits):
    """Operands and results with ``bits`` bits of mantissa, as an engine would that lost its precision."""

    def fault(engine, feeds):
        less = {name: graphs.rounded(array, bits) if name != "mask" else array for name, array in feeds.items()}
        return {name: graphs.rounded(array, bits) for name, array in engine.compute(less).items()}

    return fault


def overflow(found, feeds):
    half = found["logits"] * 2000  # of which fp16 has none above 65504
    return {"logits": np.where(np.abs(half) > 65504, np.inf, found["logits"]).astype(np.float32)}


def at_no_past(found, feeds):
    return {"hidden": found["hidden"][:, ::-1] * 1.01} if feeds["past_key_00"].shape[2] == 0 else {}


def one_nan(found, feeds):
    array = found["hidden"].copy()
    array[-1, -1, -1] = np.nan
    return {"hidden": array}


def wrong_argmax(found, feeds):
    return {"next_token": np.roll(found["next_token"], 1)}


def unslid(found, feeds):
    """Windows that did not slide: their first position is the past's."""
    return {name: feeds[name.replace("present", "past")] for name in found if name.startswith("present")}


FAULTS = {
    "the last shape's result": ("text", stale_shape),
    "the last batch's result": ("cnn", last_batch),
    "swapped inputs": ("text", with_feeds(swapped("cross_key_00", "cross_key_01"))),
    "key and value of the past swapped": ("text", with_feeds(swapped("past_key_00", "past_value_00"))),
    "swapped outputs": ("vision", with_outputs(swapped("cross_key_00", "cross_key_01"))),
    "two inputs at one address": ("text", with_feeds(lambda f: {"past_key_01": f["past_key_00"]})),
    "two outputs at one address": ("vision", with_outputs(lambda f, _: {"cross_value_00": f["cross_value_01"]})),
    "one row wrong": ("vision", one_row(1)),
    "the last row wrong": ("cnn", one_row(-1)),
    "wrong at the largest batch": ("text", one_row(7, when=lambda count: count == 20)),
    "wrong without a past": ("text", with_outputs(at_no_past)),
    "infinite in half precision": ("text", with_outputs(overflow)),
    "rounded to fp8": ("cnn", few_bits(3)),
    "one number is not a number": ("text", with_outputs(one_nan)),
    "mask ignored": ("text", with_feeds(lambda f: {"mask": np.zeros_like(f["mask"])})),
    "positions ignored": ("text", with_feeds(lambda f: {"positions": np.zeros_like(f["positions"])})),
    "a layer's keys zero": ("text", with_outputs(lambda f, _: {"present_key_01": 0 * f["present_key_01"]})),
    "the window did not slide": ("text", with_outputs(unslid)),
    "the next token off by one": (
        "text", with_outputs(lambda f, _: {"next_token": (f["next_token"] + 1) % graphs.WORDS}),
    ),
    "the next token of another row": ("text", with_outputs(wrong_argmax)),
    "channels in the order BGR": ("vision", with_feeds(lambda f: {"pixels": f["pixels"][..., ::-1].copy()})),
    "a constant result": ("cnn", with_outputs(lambda f, _: {"embedding": np.ones_like(f["embedding"])})),
    "keys of the image scaled twice": ("text", with_feeds(lambda f: {"cross_key_00": f["cross_key_00"] / 8})),
    "cut to one batch": ("cnn", with_outputs(lambda f, _: {"embedding": f["embedding"][:1]})),
}  # fmt: skip


def compare(one, fault=right, model=None):
    return compare_engine(one, lambda cuda_graphs: Engine(model or one.model, fault, cuda_graphs))


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("tf32", [False, True], ids=["fp32", "tf32"])
def test_every_planted_fault_is_found_with_its_evidence(name, tf32):
    graph, fault = FAULTS[name]
    verdict = compare(subject(graph, tf32=tf32), fault)
    assert verdict.wrong.startswith("output "), verdict
    assert not verdict.cuda_graphs
    assert str(verdict.error(graph)).startswith(f"ENGINE_WRONG: graph '{graph}': output ")


def test_a_fault_of_replays_alone_leaves_the_engine_without_cuda_graphs():
    verdict = compare(subject("text"), old_data)
    assert (verdict.wrong, verdict.cuda_graphs) == ("", False)
    assert verdict.remarks[0].startswith("CUDA graphs stay off: output ")
    assert "with CUDA graphs" in verdict.remarks[0]


def test_a_graph_that_the_cpu_cannot_compute_leaves_no_verdict():
    one = subject("cnn")
    broken = ComparedGraph("cnn", one.graph, one.model[: len(one.model) // 2], one.options)
    with pytest.raises(
        FlamestError, match=r"there is nothing to compare its engine with: cnn\.onnx cannot be"
    ) as caught:
        compare(broken, model=one.model)
    assert (caught.value.code, caught.value.exit_code) == ("ENGINE_WRONG", 65)


def test_an_engine_that_captured_nothing_runs_without_cuda_graphs():
    class Uncaptured(Engine):
        def replayed(self, shapes):
            return False

    one = subject("cnn")
    verdict = compare_engine(one, lambda cuda_graphs: Uncaptured(one.model, right, cuda_graphs))
    assert (verdict.wrong, verdict.cuda_graphs) == ("", False)
    assert "none could be captured" in verdict.remarks[0]


@pytest.mark.parametrize("batch", [3, 20])
def test_a_shape_that_no_graph_was_replayed_for_leaves_graphs_off(batch):
    class Once(Engine):
        def replayed(self, shapes):
            return super().replayed(shapes) and shapes[0][0] != batch

    one = subject("cnn")
    verdict = compare_engine(one, lambda cuda_graphs: Once(one.model, right, cuda_graphs))
    assert (verdict.wrong, verdict.cuda_graphs, verdict.passing) == ("", False, False)
    assert f"none was replayed at the graph's sizes, batch {batch}" in verdict.remarks[0]


def test_a_shape_beyond_a_sessions_graphs_is_replayed_in_its_own_session():
    class Few(Engine):
        def replayed(self, shapes):
            return super().replayed(shapes) and shapes in list(self.runs)[:2]

    one = subject("cnn")
    assert compare_engine(one, lambda cuda_graphs: Few(one.model, right, cuda_graphs)).cuda_graphs


def test_a_lack_of_memory_with_cuda_graphs_is_no_verdict_to_keep(tmp_path):
    class Full(Engine):
        def run_values(self, *words, **how):
            if self.cuda_graphs:
                raise unavailable(Code.GPU_MEMORY, "2 GB are missing").error()
            return super().run_values(*words, **how)

    one = subject("cnn")
    verdict = compare_engine(one, lambda cuda_graphs: Full(one.model, right, cuda_graphs))
    assert (verdict.wrong, verdict.cuda_graphs, verdict.passing) == ("", False, True)
    cache, key = open_cache(tmp_path / "cache"), VerdictKey("a", "b", "11", "13", "580", "GPU", "9.0")
    keep_verdict(cache, key, verdict)
    assert cache.verdict(key) is None


def test_a_changed_comparison_has_another_verdict_form():
    """Verdicts are kept. Where a change makes the comparison stricter raise VERDICT_FORM; then write the hash here."""
    folder = Path(comparison.__file__).parent
    files = [folder / name for name in ("comparison.py", "comparison_inputs.py", "comparison_judge.py")]
    files += [folder.parent / "bf16_emulation.py", folder.parents[1] / "bundle" / "limits.py"]
    found = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    assert (VERDICT_FORM, found) == (2, "38d7f2b9bbefc8aa")


def test_a_half_precision_reference_has_no_half_precision_arithmetic():
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = (random.standard_normal((256, 8)) / 4).astype(np.float16)
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", width])]
             for name, width in (("x", 256), ("y", 8))]  # fmt: skip
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", *sides, [numpy_helper.from_array(weights, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    emulated = emulate_fp16(made.SerializeToString())
    onnx.checker.check_model(emulated, full_check=True)
    left = onnx.load_from_string(emulated).graph
    assert {tensor.data_type for tensor in left.initializer} == {TensorProto.FLOAT}
    x = random.standard_normal((3, 256)).astype(np.float16)
    found = open_session(emulated).run({"x": x})["y"]
    assert found.dtype == np.float16
    right = (x.astype(np.float64) @ weights.astype(np.float64)).astype(np.float16)
    assert np.abs(found - right).max() <= np.spacing(np.abs(right).max())


@pytest.mark.parametrize("graph", MAKERS)
@pytest.mark.parametrize(
    ("bits", "options"),
    [
        (None, {}),
        (10, {"tf32": True}),
        (10, {"precision": "fp16"}),
        (7, {"precision": "int8"}),
    ],
    ids=["equal", "TF32", "fp16", "8 bits"],
)
def test_an_engine_that_rounds_as_its_precision_does_passes(graph, bits, options):
    one = subject(graph, **options)
    _, rounded = MAKERS[graph](bits=bits)
    verdict = compare(one, right, rounded)
    assert verdict.wrong == ""
    assert verdict.cuda_graphs
    assert verdict.shapes == sum(
        len(setting.batches) for setting in compared_settings(one.graph, graph_uses(one.graph))
    )


def test_the_settings_are_the_corners_of_every_use_and_a_captions_sizes():
    record, _ = graphs.text()
    found = {
        (one.sizes["tokens"], one.sizes["past"]): one.batches
        for one in compared_settings(record, graph_uses(record, 18))
    }
    assert found[1, graphs.WINDOW] == (1, 3, 16, 18)
    assert {(1, 0), (1, 1), (1, 10), (12, 0), (24, 0), (24, 1), (24, 24)} <= set(found)
    assert all(batches[:3] == (1, 3, 16) for batches in found.values())


@pytest.mark.parametrize(("constant", "value"), [("w", 0.0), ("most", 1e30)], ids=["zero", "constant"])
def test_a_reference_that_is_zero_or_constant_proves_nothing(constant, value):
    import onnx
    from onnx import numpy_helper

    one = subject("cnn")
    model = onnx.load_from_string(one.model)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == constant)
    tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), value, np.float32), constant))
    dead = ComparedGraph("cnn", one.graph, model.SerializeToString(), one.options)
    assert "zero or the same for all inputs" in compare(dead).wrong
