"""The demo's federation on the terminal: first the silos' extraction in clips, then the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from ..base.progress import Progress, progress_bar
from .federation import FederationState


@contextmanager
def federation_bars(clips: int, rounds: int) -> Iterator[Callable[[FederationState], None]]:
    """Yield a function that shows a federation's state: a bar of ``clips``, followed by a bar of ``rounds``.

    The bar of clips ends when every silo has joined, since a silo joins when its clips are extracted or left out.
    """
    with ExitStack() as open_bars:
        extraction = _Bar(open_bars.enter_context(progress_bar("extraction in the silos", clips, unit="clips")), clips)
        federation: _Bar | None = None

        def show(state: FederationState) -> None:
            nonlocal federation
            if state.joined < state.silos:
                extraction.reach(state.extracted)
                return
            if federation is None:
                extraction.reach(clips)
                open_bars.close()
                federation = _Bar(open_bars.enter_context(progress_bar("rounds", rounds, unit="rounds")), rounds)
            federation.reach(state.round)

        yield show


class _Bar:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def reach(self, done: int) -> None:
        """Advance to ``done``; a bar never goes back."""
        done = min(done, self._total)
        if done > self._done:
            self._progress.advance(done - self._done)
            self._done = done
