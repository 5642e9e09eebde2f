"""Seeded weights are not trivial: embeddings of order 1 that depend on the frame, clear captions."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.export.networks.frame_bytes import normalise_bytes
from flamest.export.networks.preprocessing import blip_frames
from flamest.export.precision.calibration import seeded_frames
from flamest.export.weights.loading import hash_weights, open_video
from flamest.export.weights.source import parse_source
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.vision_language import VisionLanguageModel


@pytest.fixture(scope="module")
def captioner(tiny_bundle):
    vision, text = (open_session(tiny_bundle / f"{name}.onnx", threads=2) for name in ("vision", "text"))
    return VisionLanguageModel(vision, text, read_manifest(tiny_bundle).vlm)


@pytest.fixture(scope="module")
def frames(tiny_bundle):
    size = read_manifest(tiny_bundle).vlm.preprocessing.size
    return seeded_frames(11, clips=16, frames=1, size=size)[:, 0]


@pytest.fixture(scope="module")
def captions(captioner, frames):
    return captioner.caption_ids(captioner.encode_image(frames))


def size_and_spread(vectors):
    """Root mean square, and the standard deviation across vectors, of float32 [N, D]."""
    return float(np.sqrt((vectors**2).mean())), float(np.sqrt((vectors.std(axis=0) ** 2).mean()))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_slow):
    again, other = open_video(parse_source("slow", "random:tiny:0")), open_video(parse_source("slow", "random:tiny:1"))
    assert again.source.weights_sha256 == tiny_slow.source.weights_sha256
    assert other.source.weights_sha256 != tiny_slow.source.weights_sha256


def test_the_weights_of_seed_0_are_the_same_on_every_machine(tiny_blip, tiny_slow):
    """Federated silos compare fingerprints; a change here changes every random:tiny bundle."""
    assert tiny_blip.source.weights_sha256.startswith(TINY_BLIP_SHA256)
    assert tiny_slow.source.weights_sha256.startswith(TINY_SLOW_SHA256)


TINY_BLIP_SHA256, TINY_SLOW_SHA256 = "f5023b14161047c5", "658777b221d171de"


def test_frame_embeddings_are_of_order_one_and_differ(captioner, frames, captions):
    size, spread = size_and_spread(captioner.embed(captioner.encode_image(frames), captions))
    assert 0.3 < size < 3
    assert spread > 0.3 * size


def test_clip_embeddings_are_of_order_one_and_differ(tiny_bundle):
    slow = open_session(tiny_bundle / "cnn.onnx", threads=2)
    crop = read_manifest(tiny_bundle).cnn.preprocessing.size
    clips = seeded_frames(12, clips=8, frames=8, size=crop)
    vectors = slow.run({"frames": clips})["embedding"]
    size, spread = size_and_spread(vectors)
    assert 0.3 < size < 3
    assert spread > 0.3 * size
    backwards = slow.run({"frames": np.ascontiguousarray(clips[:, ::-1])})["embedding"]
    assert np.sqrt(((backwards - vectors) ** 2).mean()) > 0.05 * size  # the same frames, another motion


def test_keyframe_features_differ_between_frames(tiny_bundle):
    keyframes = open_session(tiny_bundle / "keyframes.onnx", threads=2)
    rule = read_manifest(tiny_bundle).keyframes.preprocessing
    frames = normalise_bytes(seeded_frames(13, clips=8, frames=1, size=rule.size)[:, 0], rule)
    scale, spread = size_and_spread(keyframes.run({"frames": frames})["features"])
    assert spread > 0.3 * scale


def test_captions_depend_on_the_frame_and_end_after_a_handful_of_words(captions):
    lengths = [len(ids) for ids in captions]
    assert len(set(captions)) > len(captions) // 2
    assert np.mean(lengths) == pytest.approx(6, abs=2)
    assert sum(length < 20 for length in lengths) >= len(lengths) - 1


def test_each_word_of_a_caption_wins_clearly(tiny_blip, frames, captions):
    """Rounding of 1e-5 must not turn a caption: the winner leads by much more."""
    import torch

    model = tiny_blip.model
    pixels = normalise_bytes(frames, blip_frames(frames.shape[1]))
    with torch.no_grad():
        image = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
        leads = []
        for index, ids in enumerate(captions):
            tokens = torch.tensor([[30_522, *ids]])
            logits = model.text_decoder(tokens, encoder_hidden_states=image[index : index + 1]).logits[0]
            best = logits.topk(2, dim=-1).values
            leads.append(((best[:, 0] - best[:, 1]) / logits.abs().max()).numpy())
    assert np.concatenate(leads).min() > 5e-5
    assert np.median(np.concatenate(leads)) > 5e-3


def test_captions_are_tokenised_to_the_same_ids_again(tiny_blip, captions):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tiny_blip.tokenizer.decode())
    for ids in captions:
        assert tuple(tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False).ids) == ids


def test_batch_norms_have_scales_and_statistics(tiny_slow):
    norms = {name: value for name, value in tiny_slow.net.state_dict().items() if ".norm" in name or "_norm" in name}
    for name, value in norms.items():
        if name.endswith(("weight", "running_var")):
            assert bool((value > 0).all()), name
        if name.endswith("running_mean"):
            assert float(value.abs().max()) > 1e-3, name


def test_weights_that_are_not_finite_are_refused(tiny_slow):
    import copy

    import torch

    net = copy.deepcopy(tiny_slow.net)
    with torch.no_grad():
        net.blocks[1].res_blocks[0].branch2.conv_a.weight[0, 0] = float("nan")
    with pytest.raises(
        DataError, match=r"'blocks.1.res_blocks.0.branch2.conv_a.weight' hold values that are not finite"
    ):
        hash_weights(net)
