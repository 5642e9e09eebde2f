"""An exported bundle of a tiny image encoder, and files to export others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IMAGE = """
name = "tiny-image"
module = "modules.py:image"
frames = 4
[preprocessing]
size = 32
resize = 40
[pooling]
over_time = "mean+motion"
"""
VIDEO = """
name = "tiny-video"
module = "modules.py:Video"
kind = "video"
layout = "channels-first"
frames = 6
output = "tokens"
[preprocessing]
size = 32
[pooling]
skip_tokens = 1
"""


@pytest.fixture
def toml(tmp_path):
    """Write a TOML file next to the modules; texts are its content."""

    def write(*content: str, name: str = "encoder.toml") -> Path:
        shutil.copy(HERE / "modules.py", tmp_path)
        path = tmp_path / name
        path.write_text("\n".join(content))
        return path

    return write


@pytest.fixture(scope="session")
def image_bundle(tmp_path_factory) -> Path:
    """A bundle of the tiny image encoder alone, next to its encoder.toml."""
    folder = tmp_path_factory.mktemp("image-encoder")
    shutil.copy(HERE / "modules.py", folder)
    (folder / "encoder.toml").write_text(IMAGE)
    export(folder / "encoder.toml", folder / "bundle")
    return folder / "bundle"


def export(toml: Path, out: Path, **options):
    """Export a TOML file's encoder; returns the manifest."""
    from flamest.export.bundle import build_bundle
    from flamest.export.request import ExportOptions, read_request

    return build_bundle(
        read_request(ExportOptions(backend="onnx", out=out, extractor=str(toml), **options), "")
    ).manifest
