"""Drift: a silo's new clips, held against those that the last run was trained on. Nothing of this leaves the silo.

New are the stored clips that the silo had not when it last trained in a run; they are held against those trained on by
a two-sample test (``two_samples``). Each look takes the clips since the look before, and waits for as many as all looks
have taken so far. Look k is at the level ``LEVEL``/(k(k + 1)), which adds up to ``LEVEL``: that is the chance that a
run's model ever gets a false alarm, however long it is in use (docs/decisions/051-drift.md). A drift that was found
stays in the status until the next run is trained.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np

from ..base.clock import utc_text
from ..base.errors import DataError, FlamestError, StorageError
from ..base.files import FileStamp, read_regular, write_atomic
from ..base.log import Log
from .extraction.store import FeatureStore
from .status import StatusNotes
from .training.trained_clips import LastTraining, last_training
from .two_samples import compare_clips
from .worker import Worker, WorkStopped

DRIFT_FILE = "drift.json"  # in the agent's state folder
LEVEL = 0.01
FIRST_CLIPS = 32  # new clips of the first look
LEAST_GROUPS = 8  # of new clips; fewer prove nothing
MAX_BYTES = 1 << 30

log = Log("agent")
Content = tuple[tuple[int, ...], ...]


class Drift(msgspec.Struct, frozen=True):
    """Findings of the looks at new clips since the last training."""

    run: str = ""  # that was trained
    looks: int = 0
    new: int = 0  # clips since the training
    clips: int = 0  # of the last look, or of the one that found a drift
    groups: int = 0  # of these
    p: float = 1.0  # of that look
    level: float = 0.0  # that p was held against
    found: str = ""  # when a drift was found, UTC; empty: none was

    @property
    def text(self) -> str:
        """For the status."""
        if not self.run or not self.new:
            return ""
        if self.found:
            return (
                f"NEW CLIPS ARE UNLIKE those that run '{self.run}' was trained on: {self.clips} clips of {self.groups} "
                f"groups, p = {self.p:.2g}, found {self.found}"
            )
        if not self.looks:
            least = f"{FIRST_CLIPS} of {LEAST_GROUPS} groups"
            return f"new clips since the training of run '{self.run}': {self.new}; from {least} on they are compared"
        return (
            f"new clips since the training of run '{self.run}': {self.new}, not unlike those trained on "
            f"(p = {self.p:.2g})"
        )


ADVICE = (
    "look for what has changed: camera, light, persons, how often each class occurs; label some of them and see how "
    "the model does: flamest-agent evaluate; training with them, in the next run, ends this"
)


class _Looked(msgspec.Struct, frozen=True):
    """The file: of which training, what was found, and the clips that were looked at."""

    settings: str  # SHA-256 of the run's settings
    trained: int  # clips trained on or present then: with others all begins again
    drift: Drift
    clips: tuple[str, ...] = ()  # identities


def look_for_drift(store: Path, precision: str | None, state: Path) -> Drift:
    """Count the new clips, and look at them if enough have come since the last look; what was found is kept in
    ``state``.

    Raises DataError and StorageError, as the store does.
    """
    training = last_training(state)
    if training is None or not training.fingerprint:
        return Drift()
    with FeatureStore.open(store, create=False, read_only=True) as opened:
        stored = opened.read(training.fingerprint, precision)
    looked = _looked(state, training)
    identity = np.array(stored.clips)
    trained = np.isin(identity, np.array(training.clips))
    new = ~trained & ~np.isin(identity, np.array(training.others))
    unseen = new & ~np.isin(identity, np.array(looked.clips))
    groups = np.array(stored.groups)
    drift = msgspec.structs.replace(looked.drift, run=training.run, new=int(new.sum()))
    enough = unseen.sum() >= max(FIRST_CLIPS, len(looked.clips)) and len(set(groups[unseen])) >= LEAST_GROUPS
    if drift.found or not enough or not trained.any():
        return drift
    widths = (stored.vlm_width, stored.x.shape[1] - stored.vlm_width)
    found = compare_clips(
        stored.x[trained],
        stored.x[unseen],
        (groups[trained].tolist(), groups[unseen].tolist()),
        widths=widths,
        seed=drift.looks,
    )
    looks = drift.looks + 1
    level = LEVEL / (looks * (looks + 1))
    drift = msgspec.structs.replace(
        drift,
        looks=looks,
        clips=found.clips[1],
        groups=found.groups[1],
        p=found.p,
        level=level,
        found=utc_text() if found.p <= level else "",
    )
    seen = tuple(sorted({*looked.clips, *identity[unseen].tolist()}))
    kept = _Looked(training.settings, training.size, drift, seen)
    write_atomic(state / DRIFT_FILE, msgspec.json.encode(kept) + b"\n")
    return drift


def _looked(state: Path, training: LastTraining) -> _Looked:
    """Return what was found since this training; nothing where the file is of another one, or damaged."""
    nothing = _Looked(training.settings, training.size, Drift())
    try:
        known = msgspec.json.decode(read_regular(state / DRIFT_FILE, largest=MAX_BYTES), type=_Looked)
    except (DataError, StorageError, msgspec.DecodeError, UnicodeError, RecursionError):
        return nothing
    return known if (known.settings, known.trained) == (training.settings, training.size) else nothing


class DriftWatch:
    """Looks at the new clips when the store has changed; used by the daemon alone."""

    def __init__(self, store: Path, precision: str | None, state: Path, every_s: float) -> None:
        self._store, self._precision, self._state, self._every_s = store, precision, state, every_s
        self._looked = -every_s
        self._at: tuple[Content, int] | None = None  # the store and the answered round then

    def look_if_due(self, worker: Worker, notes: StatusNotes) -> None:
        """Look, and note in status and log what was found; a failure is logged and never ends the daemon."""
        if time.monotonic() - self._looked < self._every_s:
            return
        self._looked = time.monotonic()
        now = (_content(self._store), notes.status.round)
        if now == self._at:
            return
        try:
            drift = worker.call(look_for_drift, self._store, self._precision, self._state)
        except WorkStopped:
            raise
        except FlamestError as error:  # its message may name files
            log.warning("drift_not_looked_for", code=error.code)
            log.debug("drift_not_looked_for", detail=error.message)
            return
        self._at = now
        before = notes.status.drift
        notes.note(drift=msgspec.to_builtins(drift))
        if drift.found and before.get("found") != drift.found:
            log.warning("drift", clips=drift.clips, groups=drift.groups, p=drift.p, see="flamest-agent status")


def _content(store: Path) -> Content:
    """Return stamps of the store's file and of its write-ahead log, whose size changes with every clip.

    Reading makes an empty log, and may remove it.
    """
    found: list[tuple[int, ...]] = []
    for path in (store, store.with_name(f"{store.name}-wal")):
        try:
            stamp = FileStamp.of(path)
        except OSError:
            continue
        if stamp.size:
            found.append(stamp.content)
    return tuple(found)
