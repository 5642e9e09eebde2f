"""int8 for TensorRT: symmetric pairs over half precision, operators that its parser takes, proven by emulation."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from flamest.export.bundle import ExportRequest, export_bundle
from flamest.export.checks import check_bundle
from flamest.export.cli.main import app
from flamest.export.engine_options import EngineFlags
from flamest.export.networks.extractors import EXTRACTORS
from flamest.export.precision import trial
from flamest.export.precision.choice import choose_precision
from flamest.export.weights.source import parse_source
from flamest.runtime.bundle.limits import COSINES
from flamest.runtime.bundle.manifest_reading import read_manifest
from onnx import TensorProto, numpy_helper
from typer.testing import CliRunner

WORDS = ("--backend", "tensorrt", "--no-plans", "--extractor", "slow", "--weights", "miniworld", "--threads", "1")


def export(out, *words):
    result = CliRunner().invoke(app, [*WORDS, *words, "--json", "--out", str(out)])
    said = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == 0, said
    return said


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    out = tmp_path_factory.mktemp("tensorrt") / "bundle"
    return out, export(out, "--precision", "int8")


def test_pairs_are_symmetric_and_the_rest_is_half(int8):
    graph = onnx.load(str(int8[0] / "cnn.onnx")).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert constants[node.input[1]].data_type == TensorProto.BFLOAT16
        assert constants[node.input[2]].data_type == TensorProto.INT8
        assert not np.any(numpy_helper.to_array(constants[node.input[2]]))
    wide = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert sum(int(np.prod(tensor.dims)) for tensor in wide) < 100  # of the normalisation of frames


def test_every_check_passes_and_the_figures_are_in_the_manifest(int8):
    out, said = int8
    assert all(result.ok for result in check_bundle(out))
    manifest = read_manifest(out)
    assert manifest.graphs["cnn"].int8.share >= 0.9
    assert said["int8"]["cnn"]["share"] == manifest.graphs["cnn"].int8.share
    assert manifest.parity.graphs["cnn"].min_cosine >= COSINES["int8"]
    assert "rounded to bf16" in manifest.parity.graphs["cnn"].ran_on


def test_without_a_precision_a_bundle_for_tensorrt_is_bf16(tmp_path):
    said = export(tmp_path / "bundle")
    assert said["precision"] == "bf16"
    assert any("the default of --backend tensorrt" in note for note in said["notes"])
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.graphs["cnn"].dtype_histogram.keys() >= {"bfloat16"}
    assert list(manifest.notes) == said["notes"]
    assert manifest.tf32


def test_engines_use_tf32_as_the_bundle_says_unless_told(int8):
    assert not read_manifest(int8[0]).tf32
    assert EngineFlags().options(tf32=True).tf32
    assert not EngineFlags().options().tf32
    assert not EngineFlags(tf32=False).options(tf32=True).tf32


@pytest.mark.parametrize(("capability", "half"), [("", "bfloat16"), ("7.5", "float16")])
def test_the_rest_is_the_gpus_half_precision_whatever_stays_wide(monkeypatch, silent, tmp_path, capability, half):
    """An aim that cannot be reached: costs are measured in the half-precision graph, and each step is written."""
    monkeypatch.setattr(trial, "TARGET", 1.1)
    entry = EXTRACTORS["slow"]
    choice = choose_precision(("int8",), entry, "tensorrt", capability)
    sources = {"slow": parse_source("slow", "miniworld")}
    request = ExportRequest(entry, sources, tmp_path / "b", backend="tensorrt", precision=choice, threads=1)
    manifest = export_bundle(request, silent).manifest
    cnn = manifest.graphs["cnn"]
    assert set(cnn.dtype_histogram) <= {"int8", half, "float32"}
    assert cnn.int8.share >= 0.9
    assert cnn.int8.held_out_cosine >= 0.999
    graph = onnx.load(str(tmp_path / "b" / "cnn.onnx"))
    assert graph.opset_import[0].version >= 19
    assert cnn.opset == graph.opset_import[0].version
