"""Half precision at a graph's ends: keys and values in the text graph's type, everything else as in fp32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from flamest.export.graphs.spec import clip_spec, cnn_spec, text_spec, vision_spec
from flamest.export.networks.preprocessing import blip_frames, clip_frames
from flamest.export.parity.written_graphs import WrittenGraphs
from flamest.export.precision.choice import PrecisionChoice
from flamest.export.precision.half import HALVES
from flamest.export.precision.lowering import Lowering, write_lowered
from flamest.export.weights.loading import open_clip, open_video
from flamest.export.weights.source import parse_source
from flamest.runtime.backends.ranking import NO_BF16_ON_CUDA
from flamest.runtime.bundle.value_types import value_types


def written(spec, folder, **by_graph):
    return write_lowered(spec, folder, Lowering(PrecisionChoice(by_graph)))


@pytest.mark.parametrize("precision", HALVES)
def test_caches_have_the_text_graphs_type_and_other_tensors_fp32s(tiny_blip, tmp_path, precision):
    graph = written(text_spec(tiny_blip.model), tmp_path, text=precision)
    types = {tensor.name.rstrip("0123456789"): tensor.dtype for tensor in (*graph.inputs, *graph.outputs)}
    caches = [f"{kind}_{part}_" for kind in ("past", "present", "cross") for part in ("key", "value")]
    assert types == dict.fromkeys(caches, HALVES[precision]) | {
        **dict.fromkeys(("token_ids", "positions", "next_token"), "int64"),
        **dict.fromkeys(("mask", "logits", "hidden"), "float32"),
    }
    text = WrittenGraphs(tmp_path, {"text": graph}, threads=1)
    session = text.open("text")
    shape = {"past": (2, 12, 4, 64), "cross_key": (2, 12, 64, 37), "cross_value": (2, 12, 37, 64)}
    random = np.random.default_rng(0)
    caches = {
        tensor.name: random.standard_normal(
            next(size for name, size in shape.items() if tensor.name.startswith(name)), dtype=np.float32
        )
        for tensor in graph.inputs
        if tensor.name.startswith(("past", "cross"))
    }
    ids = np.array([[7, 8], [9, 10]])
    feeds = {"token_ids": ids, "positions": np.array([[4, 5]] * 2), "mask": np.zeros((2, 1, 2, 6), np.float32)}
    found = session.run({**feeds, **text.caches("text", caches)})
    assert found["next_token"].tolist() == found["logits"].argmax(axis=-1).tolist()
    kept = text.caches("text", {"past_key_00": caches["past_key_00"]})["past_key_00"][:, :, 2:]
    np.testing.assert_array_equal(found["present_key_00"][:, :, :2], kept)  # not computed with, only moved


@pytest.mark.parametrize(("vision", "text"), [("fp32", "fp16"), ("bf16", "fp16"), ("fp16", "fp32")])
def test_the_image_graph_gives_the_text_graphs_type_whatever_its_own(tiny_blip, tmp_path, vision, text):
    spec = vision_spec(tiny_blip.model, blip_frames(96))
    graph = written(spec, tmp_path, vision=vision, text=text)
    assert graph.precision == vision
    assert {tensor.dtype for tensor in graph.outputs} == {HALVES.get(text, "float32")}
    types = value_types(onnx.load(str(tmp_path / "vision.onnx")))
    assert {types[name] for name in ("pixels", "div", "sub", "div_1")} == {"uint8", "float32"}  # normalised in fp32


@pytest.mark.parametrize("network", ["slow", "i3d"])
def test_bf16_graphs_have_no_operator_that_cuda_lacks(tmp_path, network):
    loaded = open_video(parse_source(network, "random:tiny"))
    spec = cnn_spec(loaded.network, loaded.net, loaded.form, loaded.preprocessing)
    graph = written(spec, tmp_path, cnn="bf16")
    model = onnx.load(str(tmp_path / "cnn.onnx"))
    types = value_types(model)
    found = {node.op_type for node in model.graph.node if types.get(node.input[0]) == "bfloat16"}
    assert "Conv" in found
    assert found & NO_BF16_ON_CUDA == set()
    assert "MaxPool" in graph.dtype_histogram["float32"]


@pytest.mark.parametrize("precision", HALVES)
def test_clip_has_a_graph_in_half_precision(tmp_path, precision):
    """Its captions are fp32 constants, its image vector is half: their product needs operands of one type."""
    import torch

    model = open_clip(parse_source("clip", "random:tiny")).model
    captions = torch.randn(5, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    spec = clip_spec(model, captions, clip_frames(model.config.vision_config.image_size))
    graph = written(spec, tmp_path, clip=precision)
    size = model.config.vision_config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    found = WrittenGraphs(tmp_path, {"clip": graph}, threads=1).open("clip").run({"pixels": pixels})
    assert found["vector"].dtype == np.float32
    np.testing.assert_array_equal(found["vector"][:, captions.shape[1] :], captions[found["caption_index"]].numpy())
