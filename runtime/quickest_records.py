"""What ``--precision auto`` measured and chose (quickest.py), and where a machine keeps it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ..base.errors import StorageError
from ..base.files import write_atomic
from .backends.wishes import NO_WISHES, Wishes

COSINE = 0.999  # smallest, of a clip's vectors to ONNX Runtime's


class Contender(msgspec.Struct, frozen=True):
    """What one way to compute gave."""

    backend: str  # "onnxruntime", "openvino", "openvino bf16", "each graph's fastest"
    by_graph: dict[str, str]  # where not all graphs run on one backend
    bf16: bool
    ms_per_clip: float  # wall, clips overlapping as they do in an extraction
    stages_ms: dict[str, float]
    smallest_cosine: float  # to ONNX Runtime's, of all clips' vectors
    captions_equal: int
    clips: int

    @property
    def fits(self) -> bool:
        return self.captions_equal == self.clips and self.smallest_cosine >= COSINE

    @property
    def wishes(self) -> Wishes:
        if self.by_graph:
            return Wishes(by_graph=self.by_graph)
        return Wishes(self.backend.partition(" ")[0], bf16=self.bf16)


class Choice(msgspec.Struct, frozen=True):
    """What was measured, and what follows. ``contenders`` is empty where nothing had to be measured."""

    chosen: str  # a contender's ``backend``, or "auto": the ladder decides
    why: str
    contenders: tuple[Contender, ...] = ()
    refused: dict[str, str] = {}  # by backend, why it was not measured
    kept: bool = False  # measured by an earlier run

    @property
    def wishes(self) -> Wishes:
        return next((each.wishes for each in self.contenders if each.backend == self.chosen), NO_WISHES)

    @property
    def line(self) -> str:
        """For people."""
        return f"precision auto: {self.why}{' (measured before)' if self.kept else ''}"


def default_folder() -> Path | None:
    """``$XDG_CACHE_HOME/flamest/choices``, or ``~/.cache/flamest/choices``; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "flamest" / "choices"
    except RuntimeError:
        return None


def kept_at(folder: Path | None, key: str) -> Path | None:
    found = folder or default_folder()
    return found / f"{key}.json" if found else None


def read_choice(path: Path | None) -> Choice | None:
    """A file that cannot be read, or is of another version, is as none."""
    if path is None:
        return None
    try:
        return msgspec.structs.replace(msgspec.json.decode(path.read_bytes(), type=Choice), kept=True)
    except (OSError, msgspec.DecodeError):
        return None


def keep_choice(path: Path | None, choice: Choice) -> None:
    """It is only a saving: where it cannot be written, the next run measures again."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, msgspec.json.encode(choice), mode=0o600)
    except (OSError, StorageError):
        return
