"""Progress of long work: a bar on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from .errors import printable

LINE_EVERY_S = 10.0


def note(text: str) -> None:
    """Print a line on stderr before something that takes long; stdout is for results."""
    print(printable(text), file=sys.stderr)


class Progress(Protocol):
    """Interface for the work: call ``advance`` after each item and ``describe`` when the phase changes."""

    def advance(self, steps: int = 1) -> None: ...

    def describe(self, text: str) -> None: ...


class NoProgress:
    """Progress that is not shown: of seconds, or where a note has announced the work."""

    def advance(self, steps: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, unit: str = "") -> Iterator[Progress]:
    """Show a rich bar with the remaining time on a terminal, plain lines on stderr otherwise."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(title, total=total)

            class _Bar:
                def advance(self, steps: int = 1) -> None:
                    bars.advance(task, steps)

                def describe(self, text: str) -> None:
                    bars.update(task, description=f"{title}: {text}")

            yield _Bar()
        return
    yield _Lines(title, total, unit)


class _Lines:
    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._printed_at = time.monotonic()
        self._first: tuple[int, float] | None = None  # items done, time: the start-up before it says nothing of speed

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        now = time.monotonic()
        self._first = self._first or (self._done, now)
        if now - self._printed_at >= LINE_EVERY_S or self._done == self._total:
            unit = f" {self._unit}" if self._unit else ""
            print(f"{self._title}: {self._done}/{self._total}{unit}{self._left(*self._first, now)}", file=sys.stderr)
            self._printed_at = now

    def _left(self, done: int, at: float, now: float) -> str:
        """Return the estimated time left, from the speed since the first step; empty without one, and at the end."""
        if self._done == done or self._done >= self._total:
            return ""
        return f", about {(now - at) / (self._done - done) * (self._total - self._done):.0f} s left"

    def describe(self, text: str) -> None:
        print(f"{self._title}: {text}", file=sys.stderr)


class BarPerPart(contextlib.ExitStack):
    """A bar for each part of the work, one after the other; none unless ``shown``."""

    def __init__(self, *, unit: str, shown: bool = True) -> None:
        super().__init__()
        self._unit, self._shown = unit, shown
        self._bar: Progress = NoProgress()

    def begin(self, title: str, total: int) -> None:
        """End the bar of the part before, and show one for this part."""
        self.close()
        self._bar = self.enter_context(progress_bar(title, total, unit=self._unit)) if self._shown else NoProgress()

    def advance(self) -> None:
        self._bar.advance()
