"""The clips that a silo has trained on in a run, on disk.

Clips that come or go during a run may move whole groups between training and the held-out side (holdout.py). A group
that the run's models have learnt from proves nothing for them: where models are compared, it is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from ...base.errors import DataError, StorageError
from ...base.files import read_regular, write_atomic

TRAINED_CLIPS = "trained-clips.json"  # in the agent's state folder
MAX_BYTES = 1 << 30


class _Trained(msgspec.Struct, frozen=True):
    run: str
    settings: str  # the settings' SHA-256: two runs may have one name
    clips: tuple[str, ...]  # identities, ascending


def note_trained(state: Path, run: str, settings: str, clips: Sequence[str]) -> None:
    """Add clips to those that the run was trained on; those of another run are forgotten. Raises StorageError."""
    path = state / TRAINED_CLIPS
    known = _read(path)
    before = set(known.clips) if known is not None and known.settings == settings else None
    if before is not None and before.issuperset(clips):
        return
    trained = _Trained(run, settings, tuple(sorted((before or set()).union(clips))))
    write_atomic(path, msgspec.json.encode(trained) + b"\n")


def trained_clips(state: Path, run: str, settings: str | None = None) -> Collection[str]:
    """Return the identities of the clips that the run was trained on here, as far as they are known.

    ``settings``: the settings' SHA-256; None: of whichever run had this name last.
    """
    known = _read(state / TRAINED_CLIPS)
    if known is None or known.run != run or settings not in (None, known.settings):
        return frozenset()
    return frozenset(known.clips)


def _read(path: Path) -> _Trained | None:
    """Return the file's content; None where there is none, or it is damaged."""
    try:
        return msgspec.json.decode(read_regular(path, largest=MAX_BYTES), type=_Trained)
    except (DataError, StorageError, msgspec.DecodeError, UnicodeError, RecursionError):
        return None
