"""The build backend: setuptools, with an editable install that type checkers can follow.

The repository root is the package ``flamest`` (docs/decisions/001-root-is-the-package.md), so setuptools maps it with
an import hook, which pyright and mypy cannot run. Here the editable wheel also puts a folder on the path that holds a
link ``flamest`` to the root: ``build/typing``, the one that ``make check`` uses. Python itself skips that folder and
asks the hook, so that files have their real paths at run time; PYTHONPATH comes before both.

pip calls the functions of this module by name (PEP 517 and PEP 660). It stands outside the package, because it runs
before the package is installed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent.parent
TYPING = ROOT / "build" / "typing"
# Added to setuptools' import hook: a finder of TYPING that finds nothing.
SKIP = """

class _TypeCheckersOnly:
    @staticmethod
    def find_spec(fullname, target=None):
        return None


sys.path_importer_cache[{typing!r}] = _TypeCheckersOnly
"""


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Build setuptools' editable wheel, with ``build/typing`` on the path for type checkers alone."""
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    make_link()
    wheel = Path(wheel_directory) / name
    files = read_wheel(wheel)
    hook = next((path for path in files if path.endswith("_finder.py")), "")
    path_file = next((path for path in files if path.endswith(".pth")), "")
    if hook and path_file:
        files[hook] += SKIP.format(typing=str(TYPING)).encode()
        files[path_file] = files[path_file].rstrip() + f"\n{TYPING}\n".encode()
    write_wheel(wheel, files)
    return name


def make_link() -> None:
    """Make ``build/typing/flamest``, a link to the root."""
    TYPING.mkdir(parents=True, exist_ok=True)
    link = TYPING / "flamest"
    if not link.is_symlink():
        link.symlink_to(Path("..") / "..", target_is_directory=True)


def read_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_wheel(wheel: Path, files: dict[str, bytes]) -> None:
    """Write ``files`` as a wheel, with a RECORD of their hashes."""
    record = next(name for name in files if name.endswith(".dist-info/RECORD"))
    rows = io.StringIO()
    lines = csv.writer(rows, lineterminator="\n")
    for name, content in files.items():
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.writerow((name, f"sha256={digest}", len(content)))
    lines.writerow((record, "", ""))
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, record: rows.getvalue().encode()}.items():
            archive.writestr(name, content)
