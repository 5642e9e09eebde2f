"""The clips that a silo has trained on in a run, on disk.

Clips that come or go during a run may move whole groups between training and the held-out side (holdout.py). A group
that the run's models have learnt from proves nothing for them: where models are compared, it is left out. And clips
that came after the last training are new: agent/drift.py holds them against those trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ...base.errors import DataError, StorageError
from ...base.files import read_regular, write_atomic

TRAINED_CLIPS = "trained-clips.json"  # in the agent's state folder
MAX_BYTES = 1 << 30


class _Trained(msgspec.Struct, frozen=True):
    run: str
    settings: str  # the settings' SHA-256: two runs may have one name
    clips: tuple[str, ...]  # identities, ascending
    fingerprint: str = ""  # of the features; empty: not noted
    others: tuple[str, ...] = ()  # clips with such features that were there and not trained on, ascending


def note_trained(
    state: Path, run: str, settings: str, clips: Sequence[str], *, fingerprint: str = "", stored: Collection[str] = ()
) -> None:
    """Add clips to those that the run was trained on; those of another run are forgotten. Raises StorageError.

    ``stored``: all clips with features of ``fingerprint``.
    """
    path = state / TRAINED_CLIPS
    known = _read(path)
    same = known is not None and known.settings == settings
    before, there = (set(known.clips), set(known.others)) if known is not None and same else (set[str](), set[str]())
    every = before.union(clips)
    others = there.union(stored) - every
    trained = _Trained(run, settings, tuple(sorted(every)), fingerprint, tuple(sorted(others)))
    if trained != known:
        state.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.encode(trained) + b"\n")


def trained_clips(state: Path, run: str, settings: str | None = None) -> Collection[str]:
    """Return the identities of the clips that the run was trained on here, as far as they are known.

    ``settings``: the settings' SHA-256; None: of whichever run had this name last.
    """
    known = _read(state / TRAINED_CLIPS)
    if known is None or known.run != run or settings not in (None, known.settings):
        return frozenset()
    return frozenset(known.clips)


class LastTraining(NamedTuple):
    """The last training in a run, as far as it is known."""

    run: str
    settings: str  # SHA-256 of the run's settings
    fingerprint: str  # of the features; empty: an earlier version did not note it
    clips: tuple[str, ...]  # trained on: identities, ascending
    others: tuple[str, ...]  # that were there and not trained on

    @property
    def size(self) -> int:
        """Number of clips that were there."""
        return len(self.clips) + len(self.others)


def last_training(state: Path) -> LastTraining | None:
    """Return the last training in a run; None before the first one."""
    known = _read(state / TRAINED_CLIPS)
    if known is None:
        return None
    return LastTraining(known.run, known.settings, known.fingerprint, known.clips, known.others)


def _read(path: Path) -> _Trained | None:
    """Return the file's content; None where there is none, or it is damaged."""
    try:
        return msgspec.json.decode(read_regular(path, largest=MAX_BYTES), type=_Trained)
    except (DataError, StorageError, msgspec.DecodeError, UnicodeError, RecursionError):
        return None
