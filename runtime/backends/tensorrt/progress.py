"""TensorRT's build phases as steps of a progress bar.

TensorRT reports nested phases, each with its number of steps, from several threads. A phase's share is that
of its parent's step in which it runs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from ....base.progress import Progress

BUILD_STEPS = 100  # of the build of one engine


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Counts to BUILD_STEPS while one engine is built. Thread-safe; never decreases."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._reported = 0
        self._lock = threading.Lock()
        self.interrupted = False  # Ctrl-C arrived in one of the calls below

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[phase] = _Phase(parent, max(steps, 1))

    def step(self, phase: str, step: int) -> None:
        """Step number ``step`` (from 0) of ``phase`` is complete."""
        with self._lock:
            if (known := self._phases.get(phase)) is not None:
                known.done = max(known.done, min(step + 1, known.steps))
                self._report(int(self._share_of_roots() * BUILD_STEPS))

    def end(self, phase: str) -> None:
        with self._lock:
            self._phases.pop(phase, None)

    def finish(self) -> None:
        with self._lock:
            self._report(BUILD_STEPS)

    def _share_of_roots(self) -> float:
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        return max((self._share(name) for name in roots), default=0.0)

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._share(child) for child, known in self._phases.items() if known.parent == name]
        within = max(inner, default=0.0) if phase.done < phase.steps else 0.0
        return min((phase.done + within) / phase.steps, 1.0)

    def _report(self, steps: int) -> None:
        if steps > self._reported:
            self._progress.advance(steps - self._reported)
            self._reported = steps


def make_monitor(trt: Any, progress: BuildProgress) -> Any:
    """A ``trt.IProgressMonitor`` that reports to ``progress``. It must live as long as the build.

    Ctrl-C arrives inside these calls, and an exception may not pass through TensorRT's C++: it is recorded,
    and the next step asks TensorRT to stop.
    """

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the class is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                progress.start(phase_name, parent_phase, num_steps)
            except KeyboardInterrupt:
                progress.interrupted = True

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress.step(phase_name, step)
            except KeyboardInterrupt:
                progress.interrupted = True
            return not progress.interrupted

        def phase_finish(self, phase_name: str) -> None:
            try:
                progress.end(phase_name)
            except KeyboardInterrupt:
                progress.interrupted = True

    return _Monitor()
