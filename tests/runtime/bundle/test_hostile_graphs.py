"""Graphs that would run for ever, fill memory, read other files or break a parser: each has a named, early end.

Every bundle here is whole: its manifest lists the right hashes, as that of anyone who exports a hostile bundle does.
"""

import itertools
import shutil
import threading
import time

import numpy as np
import onnx
import pytest
from flamest.base.errors import FlamestError, GraphError
from flamest.base.files import sha256_file
from flamest.runtime.backends import run_limits
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.opening import GraphOpener, OpeningOptions
from flamest.runtime.backends.openvino_cpu import OpenVinoSession
from flamest.runtime.bundle.graph_check import MAX_FIELDS, MAX_NODES, OPERATORS, check_graph
from flamest.runtime.bundle.opening import open_bundle
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import open_extractor
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def whole(values, name):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def floats(values, name):
    return numpy_helper.from_array(np.array(values, np.float32), name)


def model(nodes, tensors=(), *, functions=(), domains=("",), sizes=("b", 1)):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", FLOAT, list(sizes))],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        list(tensors),
    )
    opsets = [helper.make_opsetid(domain, 17) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)


def node(operator, inputs="x", outputs="y", **options):
    return helper.make_node(operator, inputs.split(), outputs.split(), **options)


def body(nodes, name="body"):
    """A loop's body: it goes on for ever."""
    return helper.make_graph(
        [node("Identity", "condition", "again"), node("Identity", "kept", "kept_on"), *nodes],
        name,
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept_on", FLOAT, None),
        ],
    )


def loop(nodes=()):
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    return model([node("Loop", "endless true x", "y", body=body(nodes))],
                 [whole((1 << 63) - 1, "endless"), true])  # fmt: skip


def branch(depth):
    inside = helper.make_graph(
        [node("Identity", "x", "z")], "end", [], [helper.make_tensor_value_info("z", FLOAT, None)]
    )
    for number in range(depth):
        outer = helper.make_node("If", ["c"], ["z"], then_branch=inside, else_branch=inside)
        inside = helper.make_graph([outer], f"g{number}", [], [helper.make_tensor_value_info("z", FLOAT, None)])
    return model([helper.make_node("If", ["c"], ["y"], then_branch=inside, else_branch=inside)],
                 [helper.make_tensor("c", TensorProto.BOOL, [], [True])])  # fmt: skip


def function():
    """A function that calls itself."""
    again = helper.make_function("own", "f", ["a"], ["b"], [helper.make_node("f", ["a"], ["b"], domain="own")],
                                 [helper.make_opsetid("own", 17)])  # fmt: skip
    return model([helper.make_node("f", ["x"], ["y"], domain="own")], functions=[again], domains=("", "own"))


def claims(*shape):
    """A tensor that claims a shape and has no data."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=list(shape))
    return model([node("Add", "x w")], [tensor])


def external(location):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return model([node("Add", "x w")], [tensor])


def inside_attribute(tensor):
    return model([node("Constant", "", "w", value=tensor), node("Add", "x w")])


def sparse():
    tensor = helper.make_sparse_tensor(floats([1], "w"), whole([0], "i"), [1 << 40])
    made = model([node("Add", "x w")])
    made.graph.sparse_initializer.append(tensor)
    return made


def text():
    return model([node("Identity", "x")], [helper.make_tensor("w", TensorProto.STRING, [1], [b"text"])])


def many_nodes():
    names = ["x", *(f"v{number}" for number in range(MAX_NODES)), "y"]
    return model(node("Relu", first, second) for first, second in itertools.pairwise(names))


def scan():
    inside = helper.make_graph([node("Identity", "a", "b")], "s", [helper.make_tensor_value_info("a", FLOAT, None)],
                               [helper.make_tensor_value_info("b", FLOAT, None)])  # fmt: skip
    return model([node("Scan", "x", "y", body=inside, num_scan_inputs=1)])


MODELS = {
    "a loop without end": loop,
    "a loop in a loop": lambda: loop([node("Loop", "number condition kept", "o", body=body([], "inner"))]),
    "a branch": lambda: branch(0),
    "branches 40 deep": lambda: branch(12),
    "a scan": scan,
    "a function that calls itself": function,
    "an operator of another domain": lambda: model([helper.make_node("Evil", ["x"], ["y"], domain="evil")],
                                                    domains=("", "evil")),
    "an index into quantised weights": lambda: model(
        [node("MatMulNBits", "x w scales zeros index", domain="com.microsoft", K=32, N=32, bits=8, block_size=32)],
        domains=("", "com.microsoft"),
    ),
    "an unused domain": lambda: model([node("Relu")], domains=("", "evil")),
    "an unknown operator of Microsoft": lambda: model([helper.make_node("BeamSearch", ["x"], ["y"],
                                                                         domain="com.microsoft")],
                                                      domains=("", "com.microsoft")),
    "a huge range": lambda: model([node("Range", "a b c", "y")], [whole(0, "a"), whole(1 << 62, "b"), whole(1, "c")]),
    "a huge tile": lambda: model([node("Tile", "x s")], [whole([1 << 30, 1 << 30], "s")]),
    "a huge constant of a shape": lambda: model([node("ConstantOfShape", "s")], [whole([1 << 40], "s")]),
    "a huge resize": lambda: model([node("Resize", "x", "y")]),
    "a huge one-hot": lambda: model([node("OneHot", "x d v")], [whole(1 << 40, "d"), floats([0, 1], "v")]),
    "non-zero": lambda: model([node("NonZero")]),
    "random numbers": lambda: model([node("RandomNormal", "", "y", shape=[1 << 40])]),
    "a sequence": lambda: model([node("SequenceConstruct", "x", "y")]),
    "text operators": lambda: model([node("StringNormalizer", "x", "y")]),
    "text as data": text,
    "a sparse tensor": sparse,
    "a tensor of 2^62 elements": lambda: claims(1 << 31, 1 << 31),
    "a tensor of 2^64 elements": lambda: claims(1 << 32, 1 << 32),
    "a tensor of 10^5 dimensions": lambda: claims(*[1] * 100_000),
    "a tensor of a negative size": lambda: claims(-1),
    "a huge tensor in a node": lambda: inside_attribute(TensorProto(name="w", data_type=FLOAT, dims=[1 << 50])),
    "data in a file above": lambda: external("../../etc/hostname"),
    "data in an absolute file": lambda: external("/etc/hostname"),
    "data in a device": lambda: external("/dev/zero"),
    "data in a file next to it": lambda: external("tokenizer.json"),
    "data elsewhere, in a node": lambda: inside_attribute(external("x").graph.initializer[0]),
    "very many nodes": many_nodes,
}  # fmt: skip


def serialized(made):
    return made().SerializeToString()


def key(number, wire):
    return bytes([number << 3 | wire])


def field(number, content):
    size = len(content)
    prefix = bytearray()
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    return key(number, 2) + bytes([*prefix, size]) + content


def long_tag(number):
    """The tag of a length-delimited field with a bit that a parser of 32 bits drops."""
    value = (1 << 32) | number << 3 | 2
    return bytes([*(value >> shift & 0x7F | 0x80 for shift in (0, 7, 14, 21)), value >> 28])


BYTES = {
    "a hidden graph": lambda: b"\x08\x08" + long_tag(7) + field(7, field(1, field(4, b"Loop")))[1:],
    "an operator given twice": lambda: b"\x08\x08" + field(7, field(1, field(4, b"Loop") + field(4, b"Relu"))),
    "two graphs": lambda: b"\x08\x08" + field(7, field(1, field(4, b"Relu"))) + field(7, field(1, field(4, b"If"))),
    "a group": lambda: b"\x3b" * 100_000,
    "a field number of 0": lambda: b"\x02\x00" * 10,
    "numbers without end": lambda: b"\xff" * 1_000_000,
    "very many fields": lambda: b"\x08\x08" * (MAX_FIELDS + 1),
    "messages inside each other": lambda: nested(200),
    "a length beyond the file": lambda: b"\x3a\xff\xff\xff\xff\x7f",
    "an operator that is not UTF-8": lambda: field(7, field(1, field(4, b"\xff\xfe"))),
    "an operator of a megabyte": lambda: field(7, field(1, field(4, b"A" * (1 << 20)))),
}


def nested(depth):
    data = field(1, field(4, b"Relu"))
    for _ in range(depth):
        data = field(1, field(4, b"Loop") + field(5, field(6, data)))
    return field(7, data)


@pytest.mark.parametrize("name", [*MODELS, *BYTES])
def test_a_hostile_graph_is_refused_before_a_runtime_reads_it(bundle, toys, name):
    (bundle / "cnn.onnx").write_bytes(serialized(MODELS[name]) if name in MODELS else BYTES[name]())
    toys.write_manifest(bundle)  # all hashes are right
    started = time.monotonic()
    with pytest.raises(FlamestError) as caught:
        open_bundle(bundle)
    assert time.monotonic() - started < 20
    assert caught.value.code in ("graph_refused", "bad_graph", "bundle_tampered"), caught.value.message
    assert caught.value.exit_code == 65
    assert caught.value.message.isprintable()
    assert "cnn.onnx" in caught.value.message


def test_an_export_with_an_operator_that_is_refused_fails_its_check(tmp_path):
    (tmp_path / "cnn.onnx").write_bytes(serialized(MODELS["a huge tile"]))
    with pytest.raises(FlamestError, match="the operator 'Tile'"):
        check_graph(tmp_path / "cnn.onnx", "cnn.onnx")


def test_no_operator_that_loops_or_makes_large_results_is_known():
    hazards = {"Loop", "If", "Scan", "SequenceMap", "Range", "Tile", "ConstantOfShape", "Resize", "Upsample", "OneHot"}
    assert not OPERATORS & (hazards | {"NonZero", "RandomNormal", "RandomUniform", "ImageDecoder", "StringConcat"})


BOMBS = {
    "expanded": ([node("Expand", "x s", "e"), node("ReduceMean", "e", "y")], [whole([100_000, 100_000], "s")]),
    "expanded constant": (
        [node("Expand", "c s", "e"), node("ReduceMean", "e", "r"), node("Add", "x r")],
        [floats([1], "c"), whole([100_000, 100_000], "s")],
    ),
    "padded": ([node("Pad", "x s", "e"), node("ReduceMean", "e", "y")], [whole([0, 0, 1 << 20, 1 << 20], "s")]),
    "concatenated": (
        [node("Expand", "x s", "e"), node("Concat", " ".join(["e"] * 64), "l", axis=0), node("ReduceMean", "l", "y")],
        [whole([30_000, 30_000], "s")],
    ),
}


@pytest.mark.parametrize("opener", [open_session, OpenVinoSession.open], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", BOMBS)
def test_a_graph_that_needs_too_much_memory_has_a_named_end(tmp_path, monkeypatch, name, opener):
    (tmp_path / "bomb.onnx").write_bytes(model(*BOMBS[name]).SerializeToString())
    check_graph(tmp_path / "bomb.onnx", "bomb.onnx")
    started = time.monotonic()
    with pytest.raises(FlamestError) as caught:
        opener(tmp_path / "bomb.onnx").run({"x": np.ones((1, 1), np.float32)})
    assert time.monotonic() - started < 30
    assert caught.value.code in ("graph_failed", "bad_graph", "OPENVINO_REJECTED"), caught.value.message


def long_chain(size=1500, nodes=400):
    names = ["e", *(f"m{number}" for number in range(nodes))]
    chain = [node("MatMul", f"{first} w", second) for first, second in itertools.pairwise(names)]
    weights = floats(np.random.default_rng(1).normal(size=(size, size)), "w")
    ends = [node("Expand", "x s", "e"), *chain, node("ReduceMean", names[-1], "y")]
    return model(ends, [weights, whole([size, size], "s")])


@pytest.mark.parametrize("opener", [open_session, OpenVinoSession.open], ids=["onnxruntime", "openvino"])
def test_a_run_that_takes_too_long_is_stopped(tmp_path, monkeypatch, opener):
    (tmp_path / "long.onnx").write_bytes(long_chain().SerializeToString())
    session = opener(tmp_path / "long.onnx")
    monkeypatch.setattr(run_limits, "LIMIT_S", 1.0)
    started = time.monotonic()
    with pytest.raises(GraphError) as caught:
        session.run({"x": np.ones((1, 1), np.float32)})
    assert (caught.value.code, caught.value.exit_code) == ("graph_limit", 65)
    assert "took longer than 1 s" in caught.value.message
    assert time.monotonic() - started < 30


def test_a_runtime_that_does_not_stop_ends_with_the_process(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(run_limits, "LIMIT_S", 0.1)
    monkeypatch.setattr(run_limits, "GRACE_S", 0.5)
    monkeypatch.setattr(run_limits, "_end_process", lambda graph: ended.set())

    def run():
        with run_limits.limited("deaf.onnx", lambda: None):
            assert ended.wait(20)
            raise RuntimeError("at last")

    with pytest.raises(GraphError, match="took longer"):
        run()


def test_honest_runs_pay_microseconds_for_their_bounds(bundle):
    session = GraphOpener(open_bundle(bundle), OpeningOptions(threads=1)).open("keyframes")
    started = time.perf_counter()
    for _ in range(2000):
        with run_limits.limited("x", lambda: None):
            pass
    assert (time.perf_counter() - started) / 2000 < 1e-3
    assert session.outputs
    assert not run_limits._watched


LIES = {
    "no embedding": ("cnn", "embedding", lambda last: last.output.__setitem__(0, "other")),
    "one vector for all": ("cnn", "embedding", "flat"),
    "no features": ("keyframes", "features", lambda last: last.output.__setitem__(0, "other")),
    "features without rows": ("keyframes", "features", "flat"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_graph_that_gives_other_outputs_than_promised_has_a_named_end(bundle, toys, clips, tmp_path, name):
    graph, output, how = LIES[name]
    made = onnx.load(bundle / f"{graph}.onnx")
    last = next(each for each in made.graph.node if output in each.output)
    if how == "flat":
        last.output[list(last.output).index(output)] = "inside"
        made.graph.node.append(helper.make_node("Reshape", ["inside", "minus_one"], [output]))
        made.graph.initializer.append(whole([-1], "minus_one"))
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info(output, FLOAT, None))
    else:
        how(last)
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info("other", FLOAT, None))
    (bundle / f"{graph}.onnx").write_bytes(made.SerializeToString())
    toys.write_manifest(bundle)
    video = clips.write_clip(tmp_path / "clip.avi")
    with open_extractor(bundle, threads=1) as extractor, pytest.raises(GraphError) as caught:
        extractor.extract(Clip(video, sha256_file(video)))
    assert (caught.value.code, caught.value.exit_code) == ("graph_failed", 65)
