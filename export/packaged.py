"""The export of the bundle that comes with the package: ``python -m flamest.export.packaged`` (``make bundle``).

The archive is written again only when the bundle has another meaning or other graphs: its date and the versions of the
packages alone would change it with every export.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

from ..base.console import say
from ..base.files import write_atomic
from ..runtime.bundle import packaged
from ..runtime.bundle.manifest import MANIFEST_FILE, Manifest
from ..runtime.bundle.manifest_reading import decode_manifest, read_manifest

ARCHIVE = Path(packaged.__file__).with_name(packaged.ARCHIVE)


def export_miniworld(folder: Path) -> Manifest:
    """Export what ``flamest-export --backend onnx --weights miniworld --out FOLDER`` does. Needs PyTorch."""
    from .bundle import build_bundle
    from .request import ExportOptions, read_request

    options = ExportOptions(backend="onnx", weights="miniworld", out=folder)
    return build_bundle(read_request(options, capability="")).manifest


def pack(folder: Path) -> bytes:
    """Archive of a bundle folder; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(file.name)  # dated 1980
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def packaged_manifest() -> Manifest:
    """Manifest of the bundle in the package. Raises DataError."""
    return decode_manifest(packaged.unpacked(ARCHIVE.read_bytes())[MANIFEST_FILE], ARCHIVE)


def is_same(one: Manifest, other: Manifest) -> bool:
    """True when two manifests have the same fingerprint, files and records of graphs."""
    return one.fingerprint == other.fingerprint and one.files == other.files and one.graphs == other.graphs


def main() -> None:
    """Export the bundle again and write the archive where it differs."""
    with tempfile.TemporaryDirectory(prefix="flamest-bundle-") as folder:
        built = Path(folder) / packaged.MINIWORLD
        export_miniworld(built)
        if ARCHIVE.exists() and is_same(packaged_manifest(), read_manifest(built)):
            say(f"{ARCHIVE.name}: unchanged")
            return
        data = pack(built)
        write_atomic(ARCHIVE, data)
        say(f"{ARCHIVE.name}: {len(data)} bytes, fingerprint {packaged_manifest().fingerprint}")


if __name__ == "__main__":
    main()
