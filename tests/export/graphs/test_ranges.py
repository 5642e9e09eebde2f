"""Every graph of every extractor has, for each of its inputs, a range that TensorRT would accept."""

import pytest
from flamest.export.graphs import spec as specs
from flamest.export.networks.preprocessing import blip_frames, clip_frames, keyframe_candidates
from flamest.export.weights.loading import open_clip
from flamest.export.weights.source import parse_source
from flamest.export.weights.video import VIDEO_WEIGHTS
from flamest.runtime.backends.tensorrt.profile import profiles
from flamest.runtime.bundle.graph_records import Graph


def cnn(name):
    network = VIDEO_WEIGHTS[name].network
    net, form = network.tiny()
    return specs.cnn_spec(network, net, form, network.preprocessing(form.crop))


def clip():
    import torch

    model = open_clip(parse_source("clip", "random:tiny")).model
    frames = clip_frames(model.config.vision_config.image_size)
    return specs.clip_spec(model, torch.zeros(3, model.config.projection_dim), frames)


GRAPHS = {
    "vision": lambda blip, slow: specs.vision_spec(blip.model, blip_frames(96)),
    "text": lambda blip, slow: specs.text_spec(blip.model),
    "words": lambda blip, slow: specs.words_spec(blip.model),
    "keyframes": lambda blip, slow: specs.keyframe_spec(slow.net, keyframe_candidates(64)),
    "clip": lambda blip, slow: clip(),
    **{f"cnn of {name}": lambda blip, slow, name=name: cnn(name) for name in VIDEO_WEIGHTS},
}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_has_ranges_that_tensorrt_accepts(tiny_blip, tiny_slow, name):
    spec = GRAPHS[name](tiny_blip, tiny_slow)
    graph = Graph("x.onnx", 18, spec.inputs, spec.outputs, dict(spec.axes), "fp32", {})
    ranges = profiles(graph)[-1].inputs
    assert [wanted.name for wanted in ranges] == [tensor.name for tensor in spec.inputs]
    for wanted, tensor in zip(ranges, spec.inputs, strict=True):
        for low, usual, high, size in zip(wanted.smallest, wanted.usual, wanted.largest, tensor.shape, strict=True):
            assert 0 <= low <= usual <= high  # TensorRT's condition
            assert isinstance(size, str) or low == high == size


def test_the_mask_is_as_long_as_past_and_tokens_together(tiny_blip):
    spec = specs.text_spec(tiny_blip.model)
    graph = Graph("", 18, spec.inputs, (), dict(spec.axes), "fp32", {})
    ranges = {wanted.name: wanted for wanted in profiles(graph)[-1].inputs}
    past, tokens, mask = ranges["past_key_00"], ranges["token_ids"], ranges["mask"]
    for side in ("smallest", "usual", "largest"):
        assert getattr(mask, side)[3] == getattr(past, side)[2] + getattr(tokens, side)[1]
    assert past.smallest[2] == 0
