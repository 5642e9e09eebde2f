"""Form of the graphs: bytes in, the next token out, a window that slides, queries that are scaled."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
import torch
from flamest.export.graphs.export import write_graph
from flamest.export.graphs.fusible import scale_queries
from flamest.export.graphs.spec import GraphSpec, clip_spec, cnn_spec
from flamest.export.networks import preprocessing
from flamest.export.networks.frame_bytes import bytes_module, normalise_bytes
from flamest.export.weights.loading import open_clip, open_video
from flamest.export.weights.source import parse_source
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.openvino_cpu import OpenVinoSession
from flamest.runtime.bundle.graph_records import AxisRange, Tensor
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.video.preprocessing import FrameInput, frames_for
from onnx import helper, numpy_helper

RULES = {
    name: getattr(preprocessing, name)(16)
    for name in ("blip_frames", "clip_frames", "pytorchvideo_frames", "resnet3d_frames", "videomae_frames")
}
ALL_BYTES = np.ascontiguousarray(np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (1, 16, 16, 3)))


class Same(torch.nn.Module):
    def forward(self, frames):
        return frames * 1.0


def normalising_graph(rule, folder):
    tensors = Tensor("pixels", "uint8", ("batch", 16, 16, 3)), Tensor("y", "float32", ("batch", 3, 16, 16))
    spec = GraphSpec("net", Same().eval(), tensors[:1], tensors[1:], {"batch": AxisRange(1, 1, 4)}, frames=rule)
    write_graph(spec, folder)
    return folder / "net.onnx"


@pytest.mark.parametrize("name", RULES)
def test_every_byte_is_normalised_to_the_bits_of_the_hosts_table(name, tmp_path):
    rule = RULES[name]
    value = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)  # as BlipImageProcessorPil rounds
    levels = zip(np.float32(rule.mean), np.float32(rule.std), strict=True)
    expected = np.stack([(value - mean) / std for mean, std in levels]).reshape(1, 3, 16, 16)
    with torch.no_grad():
        module = bytes_module(Same(), rule)(torch.from_numpy(ALL_BYTES)).numpy()
    graph = normalising_graph(rule, tmp_path)
    found = {
        "the host": normalise_bytes(ALL_BYTES, rule),
        "PyTorch": module,
        "ONNX Runtime": open_session(graph).run({"pixels": ALL_BYTES})["y"],
    }
    if importlib.util.find_spec("openvino") is not None:
        found["OpenVINO"] = OpenVinoSession.open(graph, threads=1).run({"pixels": ALL_BYTES})["y"]
    for where, values in found.items():
        np.testing.assert_array_equal(values, expected, err_msg=where)


def test_frames_of_the_runtime_are_normalised_to_the_same_bits(tmp_path):
    """Pillow's filters give bytes; what the runtime makes of them for a float graph, a byte graph makes itself."""
    rule = RULES["blip_frames"]
    rgb = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    whole, floats = (frames_for(rgb, FrameInput(rule, whole_bytes=whole)) for whole in (True, False))
    found = open_session(normalising_graph(rule, tmp_path)).run({"pixels": whole})["y"]
    np.testing.assert_array_equal(found, floats)


@pytest.mark.parametrize("name", ["vision", "cnn"])
def test_one_cast_alone_reads_the_bytes(tiny_bundle, name):
    graph = onnx.load(str(tiny_bundle / f"{name}.onnx")).graph
    (given,) = graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    readers = [node.op_type for node in graph.node if given.name in node.input]
    assert readers == ["Cast"]
    assert graph.node[0].op_type == "Cast"


def unscaled(path):
    """Attentions of a graph whose scores are scaled after the product of queries and keys, and all attentions."""
    graph = onnx.load(str(path)).graph
    makers = {output: node for node in graph.node for output in node.output}
    late, found = 0, 0
    for node in graph.node:
        if node.op_type != "Softmax":
            continue
        found += 1
        while (node := makers[node.input[0]]).op_type != "MatMul":
            late += node.op_type in ("Mul", "Div")
    return late, found


@pytest.mark.parametrize(("name", "attentions"), [("vision", 3), ("text", 4)])
def test_queries_are_scaled_before_their_product_and_scores_are_not(tiny_bundle, name, attentions):
    assert unscaled(tiny_bundle / f"{name}.onnx") == (0, attentions)


def test_queries_of_clip_and_videomae_are_scaled_too(tmp_path):
    clip = open_clip(parse_source("clip", "random:tiny")).model
    frames = preprocessing.clip_frames(clip.config.vision_config.image_size)
    write_graph(clip_spec(clip, torch.randn(3, clip.config.projection_dim), frames), tmp_path)
    assert unscaled(tmp_path / "clip.onnx") == (0, 2)
    video = open_video(parse_source("videomae", "random:tiny"))
    write_graph(cnn_spec(video.network, video.net, video.form, video.preprocessing), tmp_path)
    assert unscaled(tmp_path / "cnn.onnx") == (0, 2)


@pytest.mark.parametrize(("operator", "scale"), [("Mul", 0.125), ("Div", 8.0), ("Div", np.sqrt(32))])
def test_a_moved_scale_gives_the_same_attention(operator, scale):
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"], name="product"),
        helper.make_node(operator, ["scores", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
    ]
    shapes = {"q": [2, 3, 4], "k": [2, 4, 5], "mask": [3, 5]}
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3, 5])]
    constants = [numpy_helper.from_array(np.float32(scale), "scale")]
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=opset, ir_version=9
    )
    before = model.SerializeToString()
    assert scale_queries(model) == 1
    onnx.checker.check_model(model, full_check=True)
    random = np.random.default_rng(0)
    feeds = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    old, new = (open_session(data).run(feeds)["y"] for data in (before, model.SerializeToString()))
    np.testing.assert_allclose(new, old, rtol=1e-6)
    if scale in (0.125, 8.0):  # a power of two rounds nothing
        np.testing.assert_array_equal(new, old)


def test_a_product_that_is_no_attention_keeps_its_scale():
    nodes = [helper.make_node("MatMul", ["q", "k"], ["p"]), helper.make_node("Mul", ["p", "scale"], ["y"])]
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in ("q", "k")]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(np.float32(0.5), "scale")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert scale_queries(model) == 0


def text_feeds(spec, batch, tokens, past):
    generator = np.random.default_rng(past)
    shapes = {
        "past": ((batch, spec.heads, past, spec.head_dim),) * 2,
        "cross": ((batch, spec.heads, spec.head_dim, 37), (batch, spec.heads, 37, spec.head_dim)),
    }
    caches = {
        f"{kind}_{part}_{layer:02d}": generator.standard_normal(shape, dtype=np.float32)
        for kind, pair in shapes.items()
        for part, shape in zip(("key", "value"), pair, strict=True)
        for layer in range(spec.layers)
    }
    positions = np.ascontiguousarray(np.broadcast_to(np.arange(past, past + tokens), (batch, tokens)))
    mask = np.zeros((batch, 1, tokens, past + tokens), np.float32)
    ids = generator.integers(0, spec.vocabulary, (batch, tokens))
    return {"token_ids": ids, "positions": positions, "mask": mask, **caches}


def test_the_text_graph_works_without_a_past_and_beyond_the_traced_sizes(tiny_bundle):
    text = open_session(tiny_bundle / "text.onnx", threads=2)
    spec = read_manifest(tiny_bundle).vlm.text
    for batch, tokens, past in ((1, 1, 0), (1, 1, 1), (5, 22, 0), (1, 7, 19)):
        out = text.run(text_feeds(spec, batch, tokens, past))
        assert out["logits"].shape == (batch, 30_524)
        assert out["hidden"].shape == (batch, tokens, 768)
        assert out["present_key_00"].shape == (batch, 12, past, 64)
        assert out["next_token"].tolist() == out["logits"].argmax(axis=-1).tolist()


@pytest.mark.parametrize(("tokens", "past"), [(1, 19), (3, 7), (5, 2)])
def test_the_present_is_the_last_positions_of_past_and_new(tiny_bundle, tokens, past):
    text = open_session(tiny_bundle / "text.onnx", threads=2)
    spec = read_manifest(tiny_bundle).vlm.text
    feeds = text_feeds(spec, 2, tokens, past)
    found = text.run(feeds)
    kept = max(past - tokens, 0)
    for name in (name for name in found if name.startswith("present")):
        assert found[name].shape[2] == past
        before = feeds[name.replace("present", "past")]
        np.testing.assert_array_equal(found[name][:, :, :kept], before[:, :, past - kept :])
    # Keys of the first layer depend on their tokens alone: one after the other they are the same.
    for new in range(min(tokens, past)):
        at = tokens - 1 - new
        alone = {name: value[:, at : at + 1] for name, value in feeds.items() if name in ("token_ids", "positions")}
        one = {**text_feeds(spec, 2, 1, 1), **alone}
        expected = text.run(one, ["present_key_00"])["present_key_00"][:, :, 0]
        np.testing.assert_allclose(found["present_key_00"][:, :, past - 1 - new], expected, rtol=1e-4, atol=1e-5)


def test_the_next_token_is_the_likeliest_of_equals_the_lowest(tiny_bundle):
    spec = read_manifest(tiny_bundle).vlm.text
    model = onnx.load(str(tiny_bundle / "text.onnx"))
    (chosen,) = [node for node in model.graph.node if "next_token" in node.output]
    text = open_session(tiny_bundle / "text.onnx", threads=2)
    found = text.run(text_feeds(spec, 8, 1, 3), ["next_token", "logits"])
    np.testing.assert_array_equal(found["next_token"], found["logits"].argmax(axis=-1))
    assert len(set(found["next_token"].tolist())) > 2
    logits = np.array([[0.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]], np.float32)
    graph = helper.make_graph(
        [type(chosen).FromString(chosen.SerializeToString())],
        "g",
        [helper.make_tensor_value_info(chosen.input[0], onnx.TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("next_token", onnx.TensorProto.INT64, [2])],
    )
    alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert open_session(alone.SerializeToString()).run({chosen.input[0]: logits})["next_token"].tolist() == [1, 0]


def test_uses_of_the_text_graph_are_a_step_a_reading_and_all(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    text = manifest.graphs["text"]
    step, read, one = text.uses
    window = manifest.vlm.caption.max_new_tokens - 1
    assert (step.name, step.axes["tokens"], step.axes["past"]) == ("step", AxisRange(1, 1, 1), AxisRange(*[window] * 3))
    assert (read.name, read.axes["tokens"].usual, read.axes["past"]) == ("read", 12, AxisRange(0, 0, 1))
    assert (one.name, one.axes["batch"].usual, one.axes["past"]) == ("one", 1, text.axes["past"])
    assert {graph.axes["batch"] for name, graph in manifest.graphs.items() if name != "keyframes"} == {
        AxisRange(1, 16, 128)
    }
    assert [use.name for use in manifest.graphs["keyframes"].uses] == ["one", "several"]
