"""The three attention modes of eq. 6 (docs/paper.md, reading 1), and which of them see the caption.

Through the exported graphs and the deployed decoder, as extraction does it.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from flamest.export.precision.calibration import seeded_frames
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.vision_language import VisionLanguageModel


@pytest.fixture(scope="module")
def opened(tiny_bundle):
    return [open_session(tiny_bundle / f"{name}.onnx", threads=2) for name in ("vision", "text")]


@pytest.fixture(scope="module")
def pixels(tiny_bundle):
    size = read_manifest(tiny_bundle).vlm.preprocessing.size
    return seeded_frames(3, clips=2, frames=1, size=size)[:, 0]


def embed(opened, tiny_bundle, pixels, attention_mode, captions):
    spec = msgspec.structs.replace(read_manifest(tiny_bundle).vlm, attention_mode=attention_mode)
    model = VisionLanguageModel(*opened, spec)
    return model.embed(model.encode_image(pixels), captions)


def distance(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


CAPTION, OTHER = (500, 600, 700), (500, 900, 700)


@pytest.mark.parametrize("attention_mode", ["bidirectional", "causal-last"])
def test_another_caption_for_the_same_frame_gives_another_embedding(opened, tiny_bundle, pixels, attention_mode):
    frame = pixels[:1]
    first = embed(opened, tiny_bundle, frame, attention_mode, [CAPTION])
    second = embed(opened, tiny_bundle, frame, attention_mode, [OTHER])
    assert distance(first, second) > 0.01


def test_the_first_token_under_the_causal_mask_is_blind_to_the_caption(opened, tiny_bundle, pixels):
    frame = pixels[:1]
    first = embed(opened, tiny_bundle, frame, "causal-first", [CAPTION])
    second = embed(opened, tiny_bundle, frame, "causal-first", [OTHER])
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("attention_mode", ["bidirectional", "causal-last", "causal-first"])
def test_another_frame_with_the_same_caption_gives_another_embedding(opened, tiny_bundle, pixels, attention_mode):
    first, second = embed(opened, tiny_bundle, pixels, attention_mode, [CAPTION, CAPTION])
    assert distance(first, second) > 0.1


def test_the_attention_mode_is_part_of_the_fingerprint(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    spec = msgspec.structs.replace(manifest.vlm, attention_mode="causal-last")
    assert msgspec.structs.replace(manifest, vlm=spec).fingerprint != manifest.fingerprint
