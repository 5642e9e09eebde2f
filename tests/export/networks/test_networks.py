"""I3D, ResNet-3D, VideoMAE and CLIP: exported, compared with PyTorch, with seeded weights that are not trivial."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from flamest.base.errors import DataError, UsageError
from flamest.base.files import sha256_file
from flamest.export.bundle import ExportRequest, export_bundle, steps_of
from flamest.export.graphs.export import write_graph
from flamest.export.graphs.spec import words_spec
from flamest.export.networks.extractors import EXTRACTORS
from flamest.export.parity.blip import compare_blip
from flamest.export.parity.single_graphs import compare_clip, compare_cnn
from flamest.export.parity.verification import verify_bundle
from flamest.export.parity.written_graphs import WrittenGraphs
from flamest.export.part_export import ExportContext
from flamest.export.parts import spatio_temporal, spatio_temporal_part, vision_language
from flamest.export.precision.calibration import CHAIN_SEED, seeded_clips, seeded_frames
from flamest.export.precision.lowering import Lowering
from flamest.export.weights.loading import open_clip, open_video
from flamest.export.weights.source import parse_source
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.bundle.graph_records import Graph, Tensor
from flamest.runtime.bundle.manifest import KEYFRAMES_SOURCE
from flamest.runtime.bundle.manifest_reading import read_manifest
from flamest.runtime.clip_records import Clip
from flamest.runtime.extractor import open_extractor

TINY = {name: parse_source(name, "random:tiny") for name in ("blip", "clip", "slow", "i3d", "resnet3d", "videomae")}
FORMS = {"i3d": (8, 2048), "resnet3d": (3, 512), "videomae": (16, 768)}


def of(folder):
    """The fp32 graphs in ``folder``, which take frames as bytes."""
    frames = (Tensor("frames", "uint8", ()),)
    graphs = {path.stem: Graph(path.name, 18, frames, (), {}, "fp32", {}) for path in folder.glob("*.onnx")}
    return WrittenGraphs(folder, graphs, threads=1)


@pytest.fixture(scope="module", params=FORMS)
def video(request, tmp_path_factory, unwatched):
    """A ``random:tiny`` network, the folder of its exported graph, and the manifest's record of it."""
    loaded = open_video(parse_source(request.param, "random:tiny"))
    folder = tmp_path_factory.mktemp(request.param)
    context = ExportContext(folder, unwatched, 1, Lowering(), seeded_clips(CHAIN_SEED))
    part = context.export(spatio_temporal_part(loaded, spatio_temporal(loaded, "keyframes")))
    return loaded, folder, part.record, part


def size_and_spread(vectors):
    """Root mean square, and the standard deviation across vectors, of float32 [N, D]."""
    return float(np.sqrt((vectors**2).mean())), float(np.sqrt((vectors.std(axis=0) ** 2).mean()))


def test_the_graph_of_a_network_equals_pytorch_and_fits_the_manifest(video):
    loaded, _, spec, part = video
    name = loaded.network.name
    assert (spec.network, spec.frames, spec.width) == (name, *FORMS[name])
    size = spec.preprocessing.size
    assert part.graphs["cnn"].inputs == (Tensor("frames", "uint8", ("batch", spec.frames, size, size, 3)),)
    assert part.graphs["cnn"].outputs[0].shape == ("batch", spec.width)
    assert 0 < part.compared.parity.graphs["cnn"].max_rel <= 1e-4
    assert part.sources == {name: loaded.source}


def test_random_embeddings_are_of_order_one_and_differ_between_clips(video):
    loaded, folder, spec, _ = video
    graph, crop = open_session(folder / "cnn.onnx", threads=1), spec.preprocessing.size
    clips = seeded_frames(12, clips=6, frames=spec.frames, size=crop)
    vectors = graph.run({"frames": clips})["embedding"]
    size, spread = size_and_spread(vectors)
    assert 0.3 < size < 3, loaded.network.name
    assert spread > 0.3 * size
    backwards = graph.run({"frames": np.ascontiguousarray(clips[:, ::-1])})["embedding"]
    assert np.sqrt(((backwards - vectors) ** 2).mean()) > 0.05 * size  # the same frames, another motion


def test_a_small_change_of_one_weight_is_found(video):
    loaded, folder, spec, _ = video
    net = copy.deepcopy(loaded.net)
    with torch.no_grad():
        # A late one: only the classifier, which is not exported, comes after it.
        *_, (_, weight) = ((n, p) for n, p in net.named_parameters() if p.ndim > 1 and p.shape[0] not in (400, 5))
        weight[:50] *= 1.01
    with pytest.raises(DataError, match="graph 'cnn'"):
        compare_cnn(loaded.network, net, of(folder), spec)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    shas = [open_video(parse_source("i3d", f"random:tiny:{seed}")).source.weights_sha256 for seed in (0, 0, 1)]
    assert shas[0] == shas[1] != shas[2]


SHA256 = {"i3d": "0c07d6e35b785609", "resnet3d": "d3a5d4530cf7838b", "videomae": "5a8d3f96a1d1bf5e"}
CLIP_SHA256 = "5995cfcc4a7fb151"


def test_the_weights_of_seed_0_are_the_same_on_every_machine(video):
    """Federated silos compare fingerprints; a change here changes every random:tiny bundle."""
    assert video[0].source.weights_sha256.startswith(SHA256[video[0].network.name])
    assert open_clip(parse_source("clip", "random:tiny")).source.weights_sha256.startswith(CLIP_SHA256)


def test_a_caption_encoded_alone_equals_the_librarys_bert_without_image(tiny_bundle, tiny_blip, tmp_path):
    for name in ("vision.onnx", "text.onnx"):
        (tmp_path / name).symlink_to(tiny_bundle / name)
    write_graph(words_spec(tiny_blip.model), tmp_path)
    spec = vision_language(tiny_blip.model, tiny_blip.tokenizer, "text", captioned_frames=1)
    parity = compare_blip(tiny_blip.model, of(tmp_path), spec)
    assert set(parity.graphs) == {"vision", "text", "words"}
    assert 0 < parity.graphs["words"].max_rel <= 1e-4
    harmed = copy.deepcopy(tiny_blip.model)
    with torch.no_grad():
        harmed.text_decoder.bert.encoder.layer[1].output.LayerNorm.bias[:100] += 0.003
    with pytest.raises(DataError, match=r"graph '(text|words)'"):
        compare_blip(harmed, of(tmp_path), spec)


@pytest.fixture(scope="module")
def clip_bundle(tmp_path_factory, unwatched):
    folder = tmp_path_factory.mktemp("clip") / "bundle"
    request = ExportRequest(EXTRACTORS["clip"], TINY, folder, captioned_frames=2, threads=1)
    return export_bundle(request, unwatched).manifest, folder


def test_a_clip_bundle_retrieves_as_pytorch_does(clip_bundle, silent):
    manifest, folder = clip_bundle
    assert read_manifest(folder) == manifest
    assert set(manifest.graphs) == set(manifest.needed_graphs) == {"clip", "keyframes"}
    assert set(manifest.files) == {"clip.onnx", "keyframes.onnx", "LICENCES.txt"}
    assert set(manifest.sources) == {"clip", KEYFRAMES_SOURCE}
    assert manifest.sources[KEYFRAMES_SOURCE].parameters < 40_000  # stem to res3, not all of Slow
    assert (manifest.width, len(manifest.vlm.captions), manifest.vlm.captioned_frames) == (1024, 8, 2)
    assert manifest.parity.captions == 4
    assert 0 < manifest.parity.graphs["clip"].max_rel <= 1e-4
    done = verify_bundle(folder, silent, threads=1)
    assert (set(done.parity.graphs), done.parity.captions_equal, done.parity.captions) == ({"clip", "keyframes"}, 4, 4)
    assert done.not_compared == {}


def test_a_bundle_without_a_spatio_temporal_part_extracts_clips(clip_bundle, clips, tmp_path):
    manifest, folder = clip_bundle
    path = clips.write_clip(tmp_path / "a.avi", frames=50, noise=20)
    with open_extractor(folder, threads=1) as extractor:
        features = extractor.extract(Clip(path, sha256_file(path)))
    assert (features.vlm.shape, features.cnn.shape) == ((1024,), (0,))
    assert features.caption.text in manifest.vlm.captions


def test_retrieved_captions_depend_on_the_frame(clip_bundle):
    manifest, folder = clip_bundle
    size = manifest.vlm.preprocessing.size
    frames = seeded_frames(11, clips=16, frames=1, size=size)[:, 0]
    found = open_session(folder / "clip.onnx", threads=1).run({"pixels": frames})
    assert len(set(found["caption_index"].tolist())) >= 4
    scale, spread = size_and_spread(found["vector"][:, :512])
    assert 0.3 < scale < 3
    assert spread > 0.3 * scale


def test_another_caption_or_tokenizer_changes_the_fingerprint(clip_bundle):
    import msgspec

    manifest, folder = clip_bundle
    loaded = open_clip(parse_source("clip", "random:tiny"))
    from flamest.export.networks.clip import tokenize_captions

    tokens = tokenize_captions(loaded.tokenizer, loaded.captions, loaded.model.config)
    assert compare_clip(loaded.model, tokens, of(folder), manifest.vlm).captions == 4
    with pytest.raises(DataError, match=r"captions \[.*\] are retrieved|graph 'clip'"):
        compare_clip(loaded.model, [*tokens[1:], tokens[0]], of(folder), manifest.vlm)
    other = msgspec.structs.replace(manifest.vlm, tokens_sha256="0" * 64)
    assert msgspec.structs.replace(manifest, vlm=other).fingerprint != manifest.fingerprint


def test_clip_without_captions_is_refused_with_a_fix(monkeypatch, tmp_path, silent):
    import dataclasses

    from flamest.export import bundle

    loaded = dataclasses.replace(open_clip(parse_source("clip", "random:tiny")), captions=())
    monkeypatch.setattr(bundle, "open_clip", lambda source: loaded)
    with pytest.raises(UsageError, match="none are given") as refused:
        export_bundle(ExportRequest(EXTRACTORS["clip"], TINY, tmp_path / "b", threads=1), silent)
    assert "--captions FILE.json" in refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_the_steps_of_an_export_are_counted():
    assert {name: steps_of(EXTRACTORS[name]) for name in ("slow", "i3d", "clip", "blip-text+i3d", "blip+slow")} == {
        "slow": 5,
        "i3d": 6,
        "clip": 6,
        "blip-text+i3d": 11,
        "blip+slow": 9,
    }


def test_an_export_counts_the_steps_that_it_announces(tmp_path, silent):
    export_bundle(ExportRequest(EXTRACTORS["slow-uniform"], TINY, tmp_path / "b", threads=1), silent)
    assert silent.steps == len(silent.said) == steps_of(EXTRACTORS["slow-uniform"])
    manifest = read_manifest(tmp_path / "b")
    assert (manifest.vlm, manifest.cnn.choice, set(manifest.sources)) == (None, "uniform", {"slow"})
