"""A silo with too few clips to contribute (``policy.min_samples``): it waits for the final model, without load.

It declines all rounds of a run at once, so that no round waits for it, its model is not fetched and no worker is
started. When the clips in its store change, the open round is looked at again.
"""

from __future__ import annotations

from pathlib import Path

from ..fedproto.bounds import MAX_ROUND_NUMBER
from ..fedproto.records import RunSettings
from .egress.policy import Policy, PolicyRefused
from .status import StatusNotes

ALL_ROUNDS = MAX_ROUND_NUMBER  # as the last round that a silo has answered: it declines every further one
StoreState = tuple[tuple[int, int], ...]  # of the store's files: time of the last change, bytes

AT_THE_END = {
    "own": "a head trained on its own clips is used (policy.adopt)",
    "auto": "the better of it and a head trained on its own clips is used (policy.adopt)",
    "federated": "it is used, and compared with a head trained on its own clips",
}


class StandingAside:
    """State of a silo that may stand aside in a run, with the reason; used by the daemon alone."""

    def __init__(self, store: Path, policy: Policy) -> None:
        self._store = store
        self._policy = policy
        self._looked_at: StoreState = ()
        self._run = ""  # hash of the settings of the run in which it stands aside
        self._refused: PolicyRefused | None = None

    def look(self) -> None:
        """Note what the store is like, before its clips are counted."""
        self._looked_at = store_state(self._store)

    def begin(self, run: RunSettings, refused: PolicyRefused) -> None:
        """Stand aside in ``run`` where that is why its round was refused."""
        self._run, self._refused = (run.sha256, refused) if refused.reason == "few_samples" else ("", None)

    def refusal(self, run: RunSettings) -> PolicyRefused | None:
        """Return why this silo stands aside in ``run``; None: it does not, or its clips have changed since."""
        if self._refused is None or self._run != run.sha256 or store_state(self._store) != self._looked_at:
            return None
        return self._refused

    def has_ended(self, run: RunSettings) -> bool:
        """Return True once, when the clips have changed: the open round may be answered after all."""
        ended = self._refused is not None and self.refusal(run) is None
        if ended:
            self._run, self._refused = "", None
        return ended

    def answered(self, run: RunSettings, round_number: int) -> int:
        """Return the last round that this silo has answered or declines, ``round_number`` where it takes part."""
        return ALL_ROUNDS if self.refusal(run) else round_number

    def show(self, run: RunSettings, notes: StatusNotes) -> bool:
        """Put into the status that this silo stands aside in ``run``; False: it does not."""
        refused = self.refusal(run)
        if refused is not None:
            notes.set_state("standing_aside", detail=f"{refused.message}. {self._at_the_end()}", code=refused.code)
        return refused is not None

    def at_end(self, run: RunSettings) -> str:
        """Return what the status says of this silo's part when ``run`` has finished; empty: it stood not aside."""
        refused = self.refusal(run)
        return "" if refused is None else f"this silo stood aside: {refused.message}"

    def _at_the_end(self) -> str:
        adopt = self._policy.adopt or "federated"
        return f"At the end of the run this silo gets the final model; {AT_THE_END[adopt]}"


def store_state(store: Path) -> StoreState:
    """Return what changes when the store does; empty for a file that is not there."""
    found: list[tuple[int, int]] = []
    for path in (store, store.with_name(f"{store.name}-wal")):
        try:
            stat = path.stat()
        except OSError:
            continue
        if stat.st_size:  # whoever opens the store may leave an empty file
            found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)
