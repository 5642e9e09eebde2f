"""Contents of a finished bundle, and the empty folder after an export that fails."""

from __future__ import annotations

import json

import pytest
from flamest.base.errors import DataError, StorageError
from flamest.base.files import sha256_file
from flamest.export.networks.extractors import EXTRACTORS
from flamest.export.weights.source import parse_source
from flamest.runtime.bundle.manifest_reading import read_manifest

GRAPHS = {"vision", "text", "cnn", "keyframes"}


def test_the_json_of_an_export_describes_the_bundle(tiny_bundle):
    said = json.loads((tiny_bundle.parent / "said.json").read_text())
    manifest = read_manifest(tiny_bundle)
    assert said["bundle"] == str(tiny_bundle)
    assert said["fingerprint"] == manifest.fingerprint
    assert said["parameters"] == {"blip": 58_656_188, "slow": 2_155_168}
    assert said["captions_equal"] is True
    assert set(said["parity"]) == GRAPHS
    assert all(set(graph) == {"max_abs", "max_rel", "min_cosine"} for graph in said["parity"].values())
    assert said["seconds"] > 0


def test_every_graph_is_within_the_limit_of_pytorch_at_two_batch_sizes(tiny_bundle):
    parity = read_manifest(tiny_bundle).parity
    assert set(parity.graphs) == GRAPHS
    for graph in parity.graphs.values():
        assert 0 < graph.max_rel <= 1e-4
        assert len(set(graph.batches)) == 2
        assert 1 in graph.batches
    assert parity.captions_equal == parity.captions == sum(parity.graphs["text"].batches)


def test_the_manifest_lists_every_file_with_its_hash(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    found = {file.name for file in tiny_bundle.iterdir()}
    assert found == {*manifest.files, "bundle.json"}
    assert {"tokenizer.json", "LICENCES.txt", *(f"{name}.onnx" for name in GRAPHS)} == set(manifest.files)
    for name, entry in manifest.files.items():
        assert (tiny_bundle / name).stat().st_size == entry.bytes
        assert sha256_file(tiny_bundle / name) == entry.sha256


def test_the_manifest_states_what_the_embeddings_mean(tiny_bundle):
    manifest = read_manifest(tiny_bundle)
    assert (manifest.vlm.width, manifest.cnn.width, manifest.width) == (768, 2048, 2816)
    assert (manifest.keyframes.count, manifest.keyframes.candidates, manifest.cnn.frames) == (8, 32, 8)
    rule = manifest.vlm.caption
    assert (rule.start_id, rule.end_id, rule.pad_id, rule.cls_id, rule.sep_id) == (30522, 102, 0, 101, 102)
    assert rule.max_new_tokens == 20
    blip, slow = manifest.vlm.preprocessing, manifest.cnn.preprocessing
    assert (blip.fit, blip.filter) == ("stretch", "bicubic")
    assert blip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert blip.std == (0.26862954, 0.26130258, 0.27577711)
    assert (slow.fit, slow.filter, slow.mean, slow.std) == ("crop", "bilinear-bytes", (0.45,) * 3, (0.225,) * 3)
    assert manifest.keyframes.preprocessing.filter == "bilinear"
    assert manifest.vlm.text.heads == 12
    assert {"torch", "transformers", "pytorchvideo", "onnx", "onnxruntime"} <= set(manifest.versions)


def test_a_bundle_holds_nothing_about_the_machine_that_built_it(tiny_bundle):
    """The exporter notes source files and lines in the graphs; a bundle goes to other sites."""
    for file in tiny_bundle.iterdir():
        data = file.read_bytes()
        assert str(tiny_bundle.parent).encode() not in data, file.name
        assert b"site-packages" not in data, file.name


SOURCES = {name: parse_source(name, "random:tiny") for name in ("blip", "slow")}


def test_a_graph_that_fails_parity_ends_in_65_and_leaves_no_bundle(tmp_path, monkeypatch, silent):
    from flamest.export.bundle import ExportRequest, export_bundle
    from flamest.export.parity import comparison

    monkeypatch.setattr(comparison, "RELATIVE", 1e-12)
    request = ExportRequest(EXTRACTORS["slow"], SOURCES, tmp_path / "out" / "bundle")
    with pytest.raises(DataError, match=r"graph 'keyframes', output features.* expected at most 1e-12") as refused:
        export_bundle(request, silent)
    assert refused.value.exit_code == 65
    assert refused.value.code == "parity_failed"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path, silent):
    from flamest.export.bundle import ExportRequest, export_bundle

    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        export_bundle(ExportRequest(EXTRACTORS["blip+slow"], SOURCES, tmp_path), silent)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
