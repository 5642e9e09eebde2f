"""Small graphs of the real form, two text layers wide, and their records. Not a test.

``vision``: bytes to keys and values for each layer; ``text``: a step, with the next token and a window that slides;
``cnn``: several frames to one vector. Random weights of a size that makes attention look at something.
"""

from __future__ import annotations

import numpy as np
import onnx
from flamest.runtime.bundle.graph_records import AxisRange, Graph, GraphUse, Tensor
from flamest.runtime.bundle.manifest import layer_names
from onnx import TensorProto, helper, numpy_helper

LAYERS, D, WORDS, SIZE, PATCH, WINDOW, FRAMES = 2, 8, 40, 16, 4, 19, 4
PATCHES = (SIZE // PATCH) ** 2
BATCH = AxisRange(1, 3, 20)
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}


def rounded(array, bits):
    """``array`` with ``bits`` bits of mantissa, as 10 in TF32 and 7 in bf16; None leaves it."""
    if bits is None or array.dtype != np.float32:
        return array
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent).astype(np.float32)


def _model(name, nodes, graph, constants, bits):
    values = [
        [helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], list(tensor.shape)) for tensor in side]
        for side in (graph.inputs, graph.outputs)
    ]
    initial = [numpy_helper.from_array(rounded(np.asarray(value), bits), key) for key, value in constants.items()]
    made = helper.make_graph(nodes, name, *values, initial)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _graph(name, inputs, outputs, axes, uses=(), precision="fp32"):
    return Graph(f"{name}.onnx", 17, inputs, outputs, axes, precision, {}, uses=uses)


def _normalise(name, channels_last_to):
    """Bytes [..., S, S, 3] to floats with the channels where ``channels_last_to`` puts them."""
    return [
        helper.make_node("Cast", [name], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["as_float", "most"], ["share"]),
        helper.make_node("Sub", ["share", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Transpose", ["normal"], ["planes"], perm=channels_last_to),
    ]


LEVELS = {"most": np.float32(255), "mean": np.float32([0.4, 0.45, 0.5]), "std": np.float32([0.2, 0.25, 0.3])}


def vision(*, bits=None, precision="fp32", seed=1):
    """(record, ONNX bytes)."""
    random = np.random.default_rng(seed)
    names = layer_names("cross", LAYERS)
    shapes = {name: (("batch", 1, D, PATCHES) if "_key_" in name else ("batch", 1, PATCHES, D)) for name in names}
    graph = _graph(
        "vision",
        (Tensor("pixels", "uint8", ("batch", SIZE, SIZE, 3)),),
        tuple(Tensor(name, "float32", shapes[name]) for name in names),
        {"batch": BATCH},
        precision=precision,
    )
    nodes, constants = _normalise("pixels", [0, 3, 1, 2]), {**LEVELS, "shape": np.int64([0, 1, D, PATCHES])}
    for name in names:
        constants[f"w_{name}"] = random.normal(size=(D, 3, PATCH, PATCH)).astype(np.float32) / 5
        nodes += [
            helper.make_node("Conv", ["planes", f"w_{name}"], [f"c_{name}"], strides=[PATCH, PATCH]),
            helper.make_node("Reshape", [f"c_{name}", "shape"], [name if "_key_" in name else f"r_{name}"]),
        ]
        if "_value_" in name:
            nodes.append(helper.make_node("Transpose", [f"r_{name}"], [name], perm=[0, 1, 3, 2]))
    return graph, _model("vision", nodes, graph, constants, bits)


def cnn(*, bits=None, precision="fp32", seed=2):
    """(record, ONNX bytes)."""
    random = np.random.default_rng(seed)
    graph = _graph(
        "cnn",
        (Tensor("frames", "uint8", ("batch", FRAMES, SIZE, SIZE, 3)),),
        (Tensor("embedding", "float32", ("batch", D)),),
        {"batch": BATCH},
        precision=precision,
    )
    nodes = [
        *_normalise("frames", [0, 4, 1, 2, 3]),
        helper.make_node("ReduceMean", ["planes"], ["means"], axes=[3, 4], keepdims=0),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["embedding"]),
    ]
    constants = {**LEVELS, "w": random.normal(size=(3 * FRAMES, D)).astype(np.float32)}
    return graph, _model("cnn", nodes, graph, constants, bits)


def text(*, bits=None, precision="fp32", seed=3):
    """(record, ONNX bytes)."""
    random = np.random.default_rng(seed)
    past, present, cross = (layer_names(word, LAYERS) for word in ("past", "present", "cross"))
    cache = ("batch", 1, "past", D)
    graph = _graph(
        "text",
        (
            Tensor("token_ids", "int64", ("batch", "tokens")),
            Tensor("positions", "int64", ("batch", "tokens")),
            Tensor("mask", "float32", ("batch", 1, "tokens", "past + tokens")),
            *(Tensor(name, "float32", cache) for name in past),
            *(Tensor(n, "float32", ("batch", 1, D, PATCHES) if "_key_" in n else ("batch", 1, PATCHES, D))
              for n in cross),
        ),
        (
            Tensor("next_token", "int64", ("batch",)),
            Tensor("logits", "float32", ("batch", WORDS)),
            Tensor("hidden", "float32", ("batch", "tokens", D)),
            *(Tensor(name, "float32", cache) for name in present),
        ),
        {"batch": BATCH, "tokens": AxisRange(1, 1, 24), "past": AxisRange(0, 10, 24)},
        (
            GraphUse("step", {"batch": BATCH, "tokens": AxisRange(1, 1, 1), "past": AxisRange(WINDOW, WINDOW, WINDOW)}),
            GraphUse("read", {"batch": BATCH, "tokens": AxisRange(1, 12, 24), "past": AxisRange(0, 0, 1)}),
            GraphUse("one", {"batch": BATCH, "tokens": AxisRange(1, 1, 24), "past": AxisRange(0, 10, 24)}),
        ),
        precision,
    )  # fmt: skip
    node = helper.make_node
    constants = {
        "word": random.normal(size=(WORDS, D)), "position": random.normal(size=(48, D)),
        "unembed": random.normal(size=(D, WORDS)),
        "scale": np.float32(D**-0.5), "one": np.int64([1]), "two": np.int64([2]), "far": np.int64([1 << 30]),
        "last": np.int64(-1),
    }  # fmt: skip
    nodes = [
        node("Gather", ["word", "token_ids"], ["words"]),
        node("Gather", ["position", "positions"], ["places"]),
        node("Add", ["words", "places"], ["h_0"]),
        node("Shape", ["token_ids"], ["count"], start=1, end=2),
    ]
    for n in range(LAYERS):
        here, layer = f"h_{n}", f"{n:02d}"
        for word in ("q", "k", "v", "o"):
            constants[f"w{word}_{n}"] = random.normal(size=(D, D)) / 2
        for word in ("q", "k", "v"):
            nodes += [node("MatMul", [here, f"w{word}_{n}"], [f"f{word}_{n}"]),
                      node("Unsqueeze", [f"f{word}_{n}", "one"], [f"{word}_{n}"])]  # fmt: skip
        nodes += [node("Mul", [f"q_{n}", "scale"], [f"s_{n}"])]
        for word, side in (("k", "key"), ("v", "value")):
            every, cut = f"all_{word}_{n}", f"present_{side}_{layer}"
            nodes.append(node("Concat", [f"past_{side}_{layer}", f"{word}_{n}"], [every], axis=2))
            nodes.append(node("Slice", [every, "count", "far", "two"], [cut]))
        nodes += [
            node("Transpose", [f"all_k_{n}"], [f"kt_{n}"], perm=[0, 1, 3, 2]),
            node("MatMul", [f"s_{n}", f"kt_{n}"], [f"own_{n}"]),
            node("Add", [f"own_{n}", "mask"], [f"masked_{n}"]),
            node("Softmax", [f"masked_{n}"], [f"a_{n}"], axis=-1),
            node("MatMul", [f"a_{n}", f"all_v_{n}"], [f"c_{n}"]),
            node("MatMul", [f"s_{n}", f"cross_key_{layer}"], [f"x_{n}"]),
            node("Softmax", [f"x_{n}"], [f"xa_{n}"], axis=-1),
            node("MatMul", [f"xa_{n}", f"cross_value_{layer}"], [f"i_{n}"]),
            node("Add", [f"c_{n}", f"i_{n}"], [f"seen_{n}"]),
            node("Squeeze", [f"seen_{n}", "one"], [f"flat_{n}"]),
            node("MatMul", [f"flat_{n}", f"wo_{n}"], [f"out_{n}"]),
            node("Add", [here, f"out_{n}"], [f"h_{n + 1}" if n + 1 < LAYERS else "hidden"]),
        ]
    nodes += [
        node("Gather", ["hidden", "last"], ["end"], axis=1),
        node("MatMul", ["end", "unembed"], ["logits"]),
        node("ArgMax", ["logits"], ["next_token"], axis=-1, keepdims=0),
    ]
    floats = {key: np.asarray(value, np.float32) if np.asarray(value).dtype == np.float64 else np.asarray(value)
              for key, value in constants.items()}  # fmt: skip
    return graph, _model("text", nodes, graph, floats, bits)
