"""The estimate of an export is right to a few per cent, and nothing is written or fetched."""

from __future__ import annotations

import json

import pytest
from flamest.export.cli.main import app
from flamest.export.dry_run import estimate
from flamest.export.networks.extractors import EXTRACTORS
from flamest.export.weights.source import parse_source
from flamest.runtime.backends.machine import Gpu, MachineFacts
from flamest.runtime.bundle.manifest_reading import read_manifest
from typer.testing import CliRunner

TINY = {name: parse_source(name, "random:tiny") for name in ("blip", "clip", "slow", "i3d", "resnet3d", "videomae")}


def run(*words):
    result = CliRunner().invoke(app, ["--dry-run", "--backend", "onnx", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_estimated_sizes_are_within_five_per_cent_of_the_bundle(tiny_bundle, tmp_path):
    said = run("--weights", "random:tiny", "--out", tmp_path / "b")
    manifest = read_manifest(tiny_bundle)
    assert set(said["graphs"]) == set(manifest.graphs)
    for name, graph in manifest.graphs.items():
        real = manifest.files[graph.file].bytes
        assert abs(said["graphs"][name]["bytes"] - real) < 0.05 * real + 100_000, name
    real = sum(entry.bytes for entry in manifest.files.values())
    assert abs(said["bundle_bytes"] - real) < 0.05 * real + 1_000_000
    assert said["download_bytes"] == 0
    assert list(tmp_path.iterdir()) == []


def test_half_and_int8_are_a_half_and_a_quarter(tmp_path):
    full, half, int8 = (
        estimate(EXTRACTORS["slow"], TINY, tmp_path, {"cnn": precision}) for precision in ("fp32", "fp16", "int8")
    )
    sizes = [found.graphs[1].bytes for found in (full, half, int8)]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    assert 0.2 < sizes[2] / sizes[0] < 0.4
    assert full.graphs[0] == int8.graphs[0]  # graph keyframes stays as it is


@pytest.mark.parametrize("extractor", ["blip-text+i3d", "clip", "videomae", "resnet3d"])
def test_every_extractor_can_be_estimated(extractor, tmp_path):
    found = estimate(EXTRACTORS[extractor], TINY, tmp_path / "not" / "there")
    assert {graph.name for graph in found.graphs} >= {"keyframes"}
    assert found.bundle_bytes > 0
    assert found.memory_bytes > found.bundle_bytes


def test_published_weights_are_named_with_revision_size_and_licence(monkeypatch, tmp_path):
    from flamest.export import dry_run

    monkeypatch.setattr(dry_run, "_cached", lambda source: False)
    monkeypatch.setattr(dry_run, "cached_folder", lambda repository, revision: None)
    said = run("--extractor", "blip+slow")
    blip = said["sources"]["blip"]
    assert blip["name"] == "Salesforce/blip-image-captioning-base"
    assert blip["revision"] == "82a37760796d32b1411fe092ab5d4e227313294b"
    assert (blip["here"], blip["download_bytes"]) == ("to be downloaded", 989_820_849)
    assert blip["licence"].startswith("BSD-3-Clause")
    assert said["download_bytes"] > blip["download_bytes"]
    assert 395e6 < said["graphs"]["vision"]["bytes"] < 410e6
    assert 485e6 < said["graphs"]["text"]["bytes"] < 505e6


def test_non_commercial_weights_give_a_warning(monkeypatch):
    from flamest.export import dry_run

    monkeypatch.setattr(dry_run, "_cached", lambda source: True)
    said = run("--extractor", "videomae")
    assert ["NOT for commercial use" in warning for warning in said["warnings"]] == [True]
    assert said["sources"]["videomae"]["here"] == "in this machine's cache"


def shown(*words, code=0):
    result = CliRunner().invoke(app, ["--dry-run", "--weights", "random:tiny", *words])
    assert result.exit_code == code, result.output
    return result.output


TESLA = Gpu("Tesla T4", "7.5", 16_000)


@pytest.mark.parametrize(
    ("facts", "engines", "half"),
    [
        (
            MachineFacts(driver_problem="no device"),
            "engines: cannot be built on this machine: NO_DRIVER_OR_GPU: no",
            "bf16",
        ),
        (
            MachineFacts(TESLA, versions={"tensorrt": "10.3.0", "cuda-bindings": "12.9"}, tensorrt_builds=True),
            "engines: one per graph, about",
            "fp16",
        ),
    ],
)
def test_notes_and_engines_are_those_of_the_export(monkeypatch, facts, engines, half):
    monkeypatch.setattr("flamest.runtime.backends.machine.gather_facts", lambda: facts)
    out = shown("--backend", "tensorrt", "--tf32")
    assert engines in out
    assert f"note: precision {half}, the default of --backend tensorrt" in out
    assert "engines: none" in shown("--backend", "onnx", "--extractor", "slow")


def test_options_of_engines_are_refused_where_none_are_built():
    assert "--tf32: only with --backend tensorrt" in shown("--backend", "onnx", "--tf32", code=2)
    assert "--opt-level: only with" in shown("--backend", "tensorrt", "--no-plans", "--opt-level", "1", code=2)
