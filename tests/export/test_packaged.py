"""The bundle in the package is what the exporter makes of the mini-world's weights today."""

from __future__ import annotations

import subprocess
import sys

import pytest
from flamest.export.packaged import ARCHIVE, export_miniworld, is_same, pack, packaged_manifest
from flamest.runtime.bundle.packaged import miniworld_bundle, unpacked


def test_the_packaged_bundle_is_what_the_exporter_makes_today(tmp_path):
    made, kept = export_miniworld(tmp_path / "made"), packaged_manifest()
    assert made.fingerprint == kept.fingerprint, "run: make bundle"
    assert (made.keyframes, made.vlm, made.cnn) == (kept.keyframes, kept.vlm, kept.cnn)
    assert {name: graph.inputs for name, graph in made.graphs.items()} == {
        name: graph.inputs for name, graph in kept.graphs.items()
    }
    if not is_same(made, kept):  # other versions of PyTorch or of the exporter write other bytes: compare the outputs
        bundle = miniworld_bundle(tmp_path / "kept")
        command = [sys.executable, "-m", "flamest.export", "verify", str(bundle), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_same_files_give_the_same_archive(tmp_path):
    files = {"b.onnx": b"\x00" * 1000, "a.json": b"{}"}
    archives = []
    for number, order in enumerate((["a.json", "b.onnx"], ["b.onnx", "a.json"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in order:
            (folder / name).write_bytes(files[name])
        archives.append(pack(folder))
    assert archives[0] == archives[1]
    assert unpacked(archives[0]) == files


@pytest.mark.parametrize("name", ["bundle.json", "LICENCES.txt", "tokenizer.json", "vision.onnx"])
def test_the_archive_holds_the_whole_bundle(name):
    assert name in unpacked(ARCHIVE.read_bytes())
