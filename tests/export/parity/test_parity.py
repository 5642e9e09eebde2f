"""The comparison with PyTorch can fail: other weights, another number, not a number."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flamest.base.errors import DataError, InvariantError, UnreachableError
from flamest.export.networks.slow_i3d import keyframe_module, pooled_module, slow_module
from flamest.export.parity.blip import compare_blip
from flamest.export.parity.comparison import BATCHES, Comparison, summarise
from flamest.export.parity.single_graphs import compare_cnn, compare_keyframes
from flamest.export.parity.verification import verify_bundle
from flamest.export.parity.written_graphs import WrittenGraphs
from flamest.export.weights.loading import open_video
from flamest.export.weights.source import parse_source
from flamest.runtime.bundle.graph_records import Graph
from flamest.runtime.bundle.manifest_reading import read_manifest

FP32 = WrittenGraphs(Path("."), {"slow": Graph("slow.onnx", 18, (), (), {}, "fp32", {})})


def one(got, expected, graph="slow"):
    return Comparison(graph, 1, {"out": np.float32(got)}, {"out": np.float32(expected)})


def test_the_figures_are_the_largest_of_all_runs():
    runs = [one([1.0, 4.0], [1.0, 4.0002]), one([2.0, 0.0], [2.0, 0.0001]), one([0.0], [9.0], graph="text")]
    figures = summarise(FP32, "slow", runs)
    assert figures.max_abs == pytest.approx(2e-4, rel=1e-2)
    assert figures.max_rel == pytest.approx(5e-5, rel=1e-2)
    assert figures.batches == BATCHES


def of(bundle):
    return WrittenGraphs(bundle, read_manifest(bundle).graphs)


@pytest.mark.parametrize("got", [1.0002, float("nan"), float("inf"), -1.0])
def test_a_difference_beyond_the_limit_is_refused(got):
    with pytest.raises(DataError, match=r"graph 'slow', output out, batch 1: relative error") as refused:
        summarise(FP32, "slow", [one([got], [1.0])])
    assert (refused.value.code, refused.value.exit_code) == ("parity_failed", 65)


def test_a_reference_of_zeros_proves_nothing_and_is_refused():
    with pytest.raises(DataError, match="reference output is zero"):
        summarise(FP32, "slow", [one([0.0], [0.0])])


def test_a_graph_without_a_comparison_is_an_invariant_error():
    with pytest.raises(InvariantError, match="never compared"):
        summarise(FP32, "slow", [one([1.0], [1.0], graph="text")])


def test_graphs_of_other_slow_weights_are_refused(tiny_bundle):
    other, manifest = open_video(parse_source("slow", "random:tiny:1")), read_manifest(tiny_bundle)
    with pytest.raises(DataError, match=r"graph 'cnn', output embedding, batch 1"):
        compare_cnn(other.network, other.net, of(tiny_bundle), manifest.cnn)
    with pytest.raises(DataError, match=r"graph 'keyframes', output features, batch 1"):
        compare_keyframes(other.net, of(tiny_bundle), manifest.keyframes.preprocessing)


def test_a_captioner_with_other_captions_is_refused(tiny_bundle, tiny_blip):
    model = copy.deepcopy(tiny_blip.model)
    with torch.no_grad():
        model.text_decoder.cls.predictions.decoder.bias[1000] += 100
    with pytest.raises(DataError, match="captions differ from PyTorch's") as refused:
        compare_blip(model, of(tiny_bundle), read_manifest(tiny_bundle).vlm)
    assert refused.value.code == "parity_failed"


@pytest.mark.parametrize(
    ("graph", "weight"),
    [("vision", "crossattention.self.value.bias"), ("text", "intermediate.dense.bias")],
)
def test_a_small_change_of_one_weight_is_found(tiny_bundle, tiny_blip, graph, weight):
    """Too small to turn a caption, too large to be rounding."""
    model = copy.deepcopy(tiny_blip.model)
    with torch.no_grad():
        model.text_decoder.bert.encoder.layer[1].get_parameter(weight)[:100] += 0.003
    with pytest.raises(DataError, match=f"graph '{graph}'"):
        compare_blip(model, of(tiny_bundle), read_manifest(tiny_bundle).vlm)


@pytest.mark.parametrize("attention_mode", ["causal-last", "causal-first"])
def test_the_other_attention_modes_agree_with_pytorch(tiny_bundle, tiny_blip, attention_mode):
    import msgspec

    spec = msgspec.structs.replace(read_manifest(tiny_bundle).vlm, attention_mode=attention_mode)
    assert compare_blip(tiny_blip.model, of(tiny_bundle), spec).graphs["text"].max_rel <= 1e-4


def test_the_slow_embedding_is_the_mean_of_the_windows(tiny_slow):
    """docs/paper.md, reading 3."""
    net = tiny_slow.net
    frames = torch.randn(1, 3, 8, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = torch.nn.Sequential(*net.blocks[:5])(frames)
        windows = [maps[0, :, :, y : y + 3, x : x + 3].mean((1, 2, 3)) for y in (0, 1) for x in (0, 1)]
        embedding = pooled_module(net)(frames.transpose(1, 2))[0]
    assert torch.allclose(embedding, torch.stack(windows).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embedding, maps[0].mean((1, 2, 3)), rtol=1e-2, atol=1e-2)


def test_the_network_computes_the_same_frame_by_frame(tiny_slow):
    """The first and the last frame have no neighbour on one side; clips of a batch have none in each other."""
    frames = torch.randn(2, 3, 8, 112, 112, generator=torch.Generator().manual_seed(0))
    flat = slow_module(tiny_slow.net, 8)
    assert not [layer for layer in flat.modules() if isinstance(layer, torch.nn.Conv3d)]
    with torch.no_grad():
        frames = frames.transpose(1, 2)
        expected, found = pooled_module(tiny_slow.net)(frames), flat(frames)
        first_moved = flat(torch.cat([torch.zeros_like(frames[:1]), frames[1:]]))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(first_moved[1], found[1], rtol=1e-5, atol=1e-6)


def test_a_network_that_mixes_frames_stays_three_dimensional(tiny_slow):
    net = copy.deepcopy(tiny_slow.net)
    stem = net.blocks[0].conv
    net.blocks[0].conv = torch.nn.Conv3d(stem.in_channels, stem.out_channels, (5, 7, 7), (1, 2, 2), (2, 3, 3))
    frames = torch.randn(1, 3, 8, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        frames = frames.transpose(1, 2)
        assert torch.equal(slow_module(net, 8)(frames), pooled_module(net)(frames))


def test_keyframe_layers_that_read_several_frames_are_refused(tiny_slow):
    net = copy.deepcopy(tiny_slow.net)
    net.blocks[2] = net.blocks[3]  # its kernels span three frames
    with pytest.raises(DataError, match="must read one frame at a time"):
        keyframe_module(net)


def test_keyframe_features_of_a_frame_do_not_depend_on_its_neighbours(tiny_slow):
    frames = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    module = keyframe_module(tiny_slow.net)
    with torch.no_grad():
        together, alone = module(frames), module(frames[1:2])
    assert torch.allclose(together[1], alone[0], rtol=1e-5, atol=1e-6)


def test_verify_compares_every_part_whose_source_can_be_loaded(tiny_bundle, silent):
    done = verify_bundle(tiny_bundle, silent)
    assert set(done.parity.graphs) == {"vision", "text", "cnn", "keyframes"}
    assert done.parity.captions_equal == done.parity.captions == 4
    assert done.not_compared == {}
    assert silent.steps == 5


def with_source(tiny_bundle, folder, part, **values):
    """A copy of the bundle whose manifest names another source."""
    import msgspec
    from flamest.runtime.bundle.manifest import encode_manifest

    shutil.copytree(tiny_bundle, folder)
    manifest = read_manifest(folder)
    sources = {**manifest.sources, part: msgspec.structs.replace(manifest.sources[part], **values)}
    (folder / "bundle.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, sources=sources)))
    return folder


def test_verify_names_the_option_for_a_source_it_cannot_load(tiny_bundle, tmp_path, silent, monkeypatch):
    from flamest.export.parity import verification

    def no_network(source):
        raise UnreachableError("no network")

    with_source(tiny_bundle, tmp_path / "a", "slow", name="SLOW_8x8_R50.pyth", revision="local file")
    folder = with_source(tmp_path / "a", tmp_path / "b", "blip", name="someone/captioner")
    monkeypatch.setattr(verification, "open_blip", no_network)
    monkeypatch.setattr(verification, "open_video", lambda *_: pytest.fail("a file's name brings no weights"))
    done = verification.verify_bundle(folder, silent)
    assert (done.parity.captions, done.parity.graphs) == (0, {})
    assert "--slow SRC, where SRC is 'SLOW_8x8_R50.pyth' of the export" in done.not_compared["slow"]
    assert "--blip SRC, where SRC is 'someone/captioner' of the export" in done.not_compared["blip"]


def test_verify_refuses_a_source_with_other_weights(tiny_bundle, tmp_path, silent, monkeypatch, tiny_blip):
    from flamest.export.parity import verification

    monkeypatch.setattr(verification, "open_blip", lambda source: tiny_blip)
    with pytest.raises(DataError, match=r"--slow random:tiny:1 holds other weights") as refused:
        verification.verify_bundle(tiny_bundle, silent, given={"slow": parse_source("slow", "random:tiny:1")})
    assert refused.value.code == "other_weights"


def test_verify_finds_a_changed_file_before_anything_opens_it(tiny_bundle, tmp_path, silent):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    graph = tmp_path / "b" / "keyframes.onnx"
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    with pytest.raises(DataError, match=r"keyframes\.onnx") as refused:
        verify_bundle(tmp_path / "b", silent)
    assert refused.value.code == "bundle_tampered"
