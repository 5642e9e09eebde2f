"""Graphs of schema 3 and of today: the same embeddings and captions from the same frames; older bundles still work.

The form of schema 3 is written here again: normalised floats in, logits and a growing past out, scores scaled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math

import msgspec
import numpy as np
import pytest
import torch
from flamest.base.files import sha256_file
from flamest.export.graphs import export
from flamest.export.graphs.export import write_graph
from flamest.export.graphs.spec import GraphSpec, cnn_spec, text_spec, vision_spec
from flamest.export.networks.frame_bytes import normalise_bytes
from flamest.export.networks.preprocessing import PYTORCHVIDEO_MEAN, PYTORCHVIDEO_STD
from flamest.export.parity.verification import verify_bundle
from flamest.export.precision.calibration import seeded_frames
from flamest.export.weights.loading import open_blip, open_video
from flamest.export.weights.source import parse_source
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.backends.openvino_cpu import OpenVinoSession
from flamest.runtime.bundle.graph_records import Tensor
from flamest.runtime.bundle.manifest import (
    FileEntry,
    FramePreprocessing,
    encode_manifest,
)
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.bundle.packaged import miniworld_bundle
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import open_extractor
from flamest.runtime.vision_language import VisionLanguageModel

GRAPHS = ("vision", "text", "cnn", "keyframes")
LIMIT = 1e-6  # of an embedding, max |a - b| / max |b|
SESSIONS = {"onnxruntime": open_session, "openvino": OpenVinoSession.open}


class OlderText(torch.nn.Module):
    """The text module of schema 3: (logits, hidden, present…), as long as past and tokens together."""

    def __init__(self, model, shape):
        super().__init__()
        self.embeddings = model.text_decoder.bert.embeddings
        self.layers = model.text_decoder.bert.encoder.layer
        self.head = model.text_decoder.cls
        self.shape = shape

    def heads(self, states):
        return states.reshape(*states.shape[:-1], self.shape.heads, self.shape.head_dim).transpose(1, 2)

    def forward(self, token_ids, positions, mask, *caches):
        past, cross = caches[: 2 * self.shape.layers], caches[2 * self.shape.layers :]
        words = self.embeddings.word_embeddings(token_ids)
        hidden = self.embeddings.LayerNorm(words + self.embeddings.position_embeddings(positions))
        present = []
        for index, layer in enumerate(self.layers):
            own = layer.attention.self
            key = torch.cat([past[2 * index], self.heads(own.key(hidden))], dim=2)
            value = torch.cat([past[2 * index + 1], self.heads(own.value(hidden))], dim=2)
            present += [key, value]
            scores = torch.matmul(self.heads(own.query(hidden)), key.transpose(2, 3)) / math.sqrt(self.shape.head_dim)
            context = torch.matmul((scores + mask).softmax(-1), value).transpose(1, 2).flatten(2)
            hidden = layer.attention.output(context, hidden)
            scores = torch.matmul(self.heads(layer.crossattention.self.query(hidden)), cross[2 * index])
            seen = torch.matmul(scores.softmax(-1), cross[2 * index + 1]).transpose(1, 2).flatten(2)
            hidden = layer.feed_forward_chunk(layer.crossattention.output(seen, hidden))
        return (self.head(hidden[:, -1]), hidden, *present)


class OverTime(torch.nn.Module):
    """[B, 3, K, S, S], as schema 3 has the frames of a clip."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, frames):
        return self.inner(frames.transpose(1, 2))


def older(spec: GraphSpec, vlm=None) -> GraphSpec:
    """The specification of the same graph in schema 3."""
    if spec.name == "text":
        grown = tuple(
            msgspec.structs.replace(
                tensor, shape=tuple("past + tokens" if size == "past" else size for size in tensor.shape)
            )
            for tensor in spec.outputs
            if tensor.name != "next_token"
        )
        return GraphSpec("text", OlderText(spec.module, vlm).eval(), spec.inputs, grown, spec.axes)
    (taken,) = spec.inputs
    size = taken.shape[-2]
    lead = ("batch", 3, taken.shape[1]) if spec.name == "cnn" else ("batch", 3)
    module = OverTime(spec.module).eval() if spec.name == "cnn" else spec.module
    inputs = (Tensor(taken.name, "float32", (*lead, size, size)),)
    return GraphSpec(spec.name, module, inputs, spec.outputs, spec.axes)


@pytest.fixture(scope="module", params=["random:tiny", "miniworld"])
def forms(request, tmp_path_factory, tiny_bundle):
    """The same networks' graphs of schema 3 in a folder and of today in a bundle; the records of their parts."""
    older_folder = tmp_path_factory.mktemp("older")
    today = tiny_bundle if request.param == "random:tiny" else miniworld_bundle(tmp_path_factory.mktemp("today") / "b")
    manifest = read_manifest(today)
    vlm, cnn = manifest.vlm, manifest.cnn
    blip = open_blip(parse_source("blip", request.param))
    slow = open_video(parse_source("slow", request.param))
    for name, loaded in (("blip", blip), ("slow", slow)):
        assert manifest.sources[name].weights_sha256 == loaded.source.weights_sha256
    text = text_spec(blip.model)
    before = [
        older(vision_spec(blip.model, vlm.preprocessing)),
        older(GraphSpec("text", blip.model, text.inputs, text.outputs, text.axes), vlm.text),
        older(cnn_spec(slow.network, slow.net, slow.form, cnn.preprocessing)),
    ]
    written = {"keyframes": manifest.graphs["keyframes"]}  # the same in both
    (older_folder / "keyframes.onnx").write_bytes((today / "keyframes.onnx").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "scale_queries", lambda model: 0)
        for spec in before:
            written[spec.name] = write_graph(spec, older_folder)
    return {"older": older_folder, "today": today}, vlm, cnn, written, request.param


def relative(got, expected):
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("backend", SESSIONS)
def test_captions_and_embeddings_are_those_of_schema_3(forms, backend):
    if backend == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    folders, vlm, cnn, _, _ = forms

    def session(form, name):
        return SESSIONS[backend](folders[form] / f"{name}.onnx", threads=1)

    models = {
        form: VisionLanguageModel(session(form, "vision"), session(form, "text"), vlm) for form in ("older", "today")
    }
    rgb = seeded_frames(5, clips=6, frames=1, size=vlm.preprocessing.size)[:, 0]
    images = {
        "older": models["older"].encode_image(normalise_bytes(rgb, vlm.preprocessing)),
        "today": models["today"].encode_image(rgb),
    }
    captions = {form: model.caption_ids(images[form]) for form, model in models.items()}
    assert captions["today"] == captions["older"]
    assert len(set(captions["older"])) > 1
    vectors = {form: model.embed(images[form], captions["older"]) for form, model in models.items()}
    assert relative(vectors["today"], vectors["older"]) <= LIMIT

    clips = seeded_frames(6, clips=3, frames=cnn.frames, size=cnn.preprocessing.size)
    floats = np.ascontiguousarray(normalise_bytes(clips, cnn.preprocessing).swapaxes(1, 2))
    (got,) = session("today", "cnn").run({"frames": clips}).values()
    (expected,) = session("older", "cnn").run({"frames": floats}).values()
    assert relative(got, expected) <= LIMIT


@pytest.fixture(scope="module")
def older_bundle(forms, tiny_bundle, tmp_path_factory):
    """A whole bundle of schema 3 of ``random:tiny``."""
    folders, _, cnn, written, source = forms
    if source != "random:tiny":
        pytest.skip("of random:tiny alone")
    made = tmp_path_factory.mktemp("schema3")
    manifest = read_manifest(tiny_bundle)
    for name in GRAPHS:
        (made / f"{name}.onnx").write_bytes((folders["older"] / f"{name}.onnx").read_bytes())
    (made / "tokenizer.json").write_bytes((tiny_bundle / "tokenizer.json").read_bytes())
    files = {
        path.name: FileEntry(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for path in sorted(made.iterdir())
    }
    size = cnn.preprocessing.size
    floats = FramePreprocessing(size, "crop", "bilinear", PYTORCHVIDEO_MEAN, PYTORCHVIDEO_STD)
    before = msgspec.structs.replace(
        manifest,
        schema=3,
        graphs=dict(written),
        files=files,
        cnn=msgspec.structs.replace(cnn, preprocessing=floats),
    )
    (made / "bundle.json").write_bytes(encode_manifest(before))
    return made


def test_a_bundle_of_schema_3_is_verified_against_pytorch(older_bundle, silent):
    done = verify_bundle(older_bundle, silent, threads=1)
    assert set(done.parity.graphs) == set(GRAPHS)
    assert done.parity.captions_equal == done.parity.captions == 4
    assert all(0 < figures.max_rel <= 1e-4 for figures in done.parity.graphs.values())


def test_a_clip_has_the_same_caption_and_vector_from_both_bundles(older_bundle, tiny_bundle, clips, tmp_path):
    """The image is resized alike for both; Slow's frames are rounded to bytes today."""
    path = clips.write_clip(tmp_path / "a.avi", frames=40, noise=20)
    found = []
    for bundle in (older_bundle, tiny_bundle):
        with open_extractor(bundle, threads=1) as extractor:
            found.append(extractor.extract(Clip(path, sha256_file(path))))
    before, today = found
    assert today.caption == before.caption
    assert today.keyframe_times_s == before.keyframe_times_s
    assert relative(today.vlm, before.vlm) <= LIMIT
    cosine = float(today.cnn @ before.cnn / (np.linalg.norm(today.cnn) * np.linalg.norm(before.cnn)))
    assert cosine >= 0.9999
    assert today.fingerprint != before.fingerprint


def test_the_fingerprint_of_a_bundle_does_not_depend_on_its_schema(older_bundle):
    manifest = read_manifest(older_bundle)
    assert msgspec.structs.replace(manifest, schema=4).fingerprint == manifest.fingerprint
