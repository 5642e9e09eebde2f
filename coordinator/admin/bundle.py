"""Facts of a bundle that a run's settings repeat: its fingerprint and the width of its embeddings.

A coordinator has nothing that reads a bundle: it asks ``flamest-export inspect``, which every installation has, or
reads what that command printed where the bundle is.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...base.child_process import child_environment
from ...base.errors import DataError, StorageError, printable
from ...base.files import read_regular
from ..settings import RunTable

MAX_INSPECTION = 32 << 20  # bytes of `flamest-export inspect --json`
INSPECT_S = 60.0  # that it may take; it reads one small file
PROGRAM = "flamest.export"


class _Part(msgspec.Struct):
    width: int


class _Problem(msgspec.Struct):
    message: str = ""
    fix: str = ""
    code: str = "bad_data"


class _Inspection(msgspec.Struct):
    """The fields of ``flamest-export inspect --json`` that matter here; other ones are ignored."""

    fingerprint: str = ""
    width: int = 0
    vlm: _Part | None = None
    cnn: _Part | None = None
    cnn2: _Part | None = None
    error: _Problem | None = None


@dataclass(frozen=True)
class BundleFacts:
    """Facts that a run must have right about the bundle that its silos extract with."""

    fingerprint: str
    width: int  # of a clip's embedding
    blocks: tuple[int, ...]  # widths of its parts in a row; empty for a bundle of one part

    def problems(self, run: RunTable) -> list[str]:
        """Return how a run's settings differ from the bundle, each with the line that fits."""
        wrong = []
        if run.fingerprint != self.fingerprint:
            wrong.append(f'run.fingerprint: the bundle has "{self.fingerprint}"')
        if run.inputs != self.width:
            wrong.append(f"run.inputs = {run.inputs}: the bundle gives {self.width}-d embeddings")
        if run.head.blocks and run.head.blocks != (self.blocks or (self.width,)):
            wrong.append(f"run.head.blocks = {list(run.head.blocks)}: the bundle's are {list(self.blocks)}")
        return wrong


def read_bundle_facts(source: Path) -> BundleFacts:
    """Read the facts of the bundle folder ``source``, or of a file with what ``flamest-export inspect --json`` printed.

    Raises DataError for another folder or file, StorageError.
    """
    text = read_regular(source, largest=MAX_INSPECTION) if source.is_file() else _inspect(source)
    try:
        found = msgspec.json.decode(text.splitlines()[-1], type=_Inspection)
    except (msgspec.MsgspecError, ValueError, IndexError, RecursionError) as error:
        raise DataError(
            f"{source} is not what `flamest-export inspect BUNDLE --json` prints: {printable(str(error))[:300]}",
            fix="give the bundle's folder, or: flamest-export inspect BUNDLE --json > bundle-facts.json",
        ) from error
    if found.error is not None:
        # The fix of flamest-export may be to ask the operator, who is asking here.
        no_bundle = not source.is_file() and not (source / "bundle.json").exists()
        makes = "flamest-export --backend onnx --out DIR makes a bundle; name its folder"
        raise DataError(found.error.message, fix=makes if no_bundle else found.error.fix, code=found.error.code)
    if not found.fingerprint or found.width < 1:
        raise DataError(f"{source} names no fingerprint and width", fix="flamest-export inspect BUNDLE --json")
    parts = tuple(part.width for part in (found.vlm, found.cnn, found.cnn2) if part is not None)
    return BundleFacts(found.fingerprint, found.width, parts if len(parts) > 1 else ())


def _inspect(bundle: Path) -> bytes:
    """Return what ``flamest-export inspect --json`` prints about a bundle, errors included. Raises StorageError."""
    command = [sys.executable, "-P", "-B", "-m", PROGRAM, "inspect", str(bundle), "--json"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=INSPECT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StorageError(
            f"flamest-export inspect {bundle} does not run: {error}",
            fix="run it by hand, or give a file that it wrote with --json elsewhere",
        ) from error
    if not done.stdout.strip():
        reason = printable(done.stderr.decode("utf-8", "replace").strip()[-300:])
        raise StorageError(
            f"flamest-export inspect {bundle} printed nothing: {reason}",
            fix="run it by hand; pip install 'flamest' on this machine, or give a file of its --json",
        )
    return done.stdout
