"""Events of a timeline: stretches of a video with one answer, made of the answers of its windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...runtime.clip_records import Segment
from ..answers import UNKNOWN, Answers, LabelProbability, Probabilities
from .smoothing import Smoother, Smoothing
from .windows import WindowPlan

MOST_WARNINGS = 3  # of an event


@dataclass(frozen=True)
class TimelineEvent:
    """A stretch of a video with one answer; ``reason`` is set, and there is no label, where it could not be read."""

    start_s: float  # seconds from the video's first frame
    end_s: float
    label: str  # of an action, or ``unknown``; empty where the stretch could not be read
    probability: float  # mean over its windows: of the label; of the likeliest one where that is not likely enough
    labels: tuple[LabelProbability, ...] = ()  # means over its windows, the most probable first
    windows: int = 0  # that it was made of
    reason: str = ""  # "code: sentence"
    warnings: tuple[str, ...] = ()  # problems of windows that could be read

    @property
    def unknown(self) -> bool:
        """True where no label is likely enough, or the stretch could not be read."""
        return self.label in ("", UNKNOWN)

    def as_json(self) -> dict[str, Any]:
        """Return the event as commands print it; times in seconds."""
        entry = {
            "start": self.start_s,
            "end": self.end_s,
            "label": self.label or None,
            "probability": self.probability if self.label else None,
            "unknown": self.unknown,
            "labels": [{"label": item.label, "probability": item.probability} for item in self.labels],
            "windows": self.windows,
            "warnings": list(self.warnings),
        }
        return {**entry, "reason": self.reason} if self.reason else entry


@dataclass(frozen=True)
class Timeline:
    """The events of one video, in order; ``reason`` is set instead when none of it could be read."""

    video: Path
    events: tuple[TimelineEvent, ...] = ()
    length_s: float = 0.0  # seconds
    windows: int = 0
    reason: str = ""  # "code: sentence"


class _Answered(NamedTuple):
    """A window whose state is not decided yet."""

    stretch: Segment
    probability: Probabilities  # float64 [labels]
    warnings: tuple[str, ...]


@dataclass(eq=False)
class _Open:
    """The event that may still grow."""

    state: int
    start_us: int
    end_us: int
    total: Probabilities  # float64 [labels], summed over the windows
    windows: int
    warnings: list[str]


class EventBuilder:
    """Windows' answers in, events out, each as soon as it is certain."""

    def __init__(self, answers: Answers, smoothing: Smoothing | None, plan: WindowPlan) -> None:
        """``smoothing``: None where neighbours do not count, and each window keeps its own answer."""
        self._answers = answers
        self._smoothing = smoothing or Smoothing()
        self._smooths = smoothing is not None
        states = len(answers.model.labels) + 1
        self._unknown = states - 1
        self._smoother = Smoother(states, self._smoothing, stride_s=plan.stride_us / 1e6, share=plan.share)
        self._undecided: deque[_Answered] = deque()
        self._open: _Open | None = None
        self._unread: TimelineEvent | None = None

    def add(
        self, stretch: Segment, probability: Probabilities, warnings: tuple[str, ...] = ()
    ) -> Iterator[TimelineEvent]:
        """Take the next window's calibrated probabilities, float64 [labels]."""
        yield from self._end_unread()
        self._undecided.append(_Answered(stretch, probability, warnings))
        evidence = self._smoothing.evidence(probability, self._answers.doubt(probability))
        yield from self._decide(self._smoother.add(evidence) if self._smooths else [int(evidence.argmax())])

    def add_unread(self, stretch: Segment, reason: str) -> Iterator[TimelineEvent]:
        """Take the next window, which could not be read: what was seen before says nothing of what comes after.

        ``reason``: "code: sentence"; neighbours with the same code are one event.
        """
        yield from self._end_readable()
        unread = self._unread
        if (
            unread is not None
            and unread.end_s == stretch.start_s
            and unread.reason.split(":")[0] == reason.split(":")[0]
        ):
            self._unread = TimelineEvent(
                unread.start_s, stretch.end_s, "", 0.0, windows=unread.windows + 1, reason=unread.reason
            )
            return
        yield from self._end_unread()
        self._unread = TimelineEvent(stretch.start_s, stretch.end_s, "", 0.0, windows=1, reason=reason)

    def end(self) -> Iterator[TimelineEvent]:
        """Return the last events."""
        yield from self._end_readable()
        yield from self._end_unread()

    def _decide(self, states: list[int]) -> Iterator[TimelineEvent]:
        for state in states:
            window, now = self._undecided.popleft(), self._open
            if now is not None and now.state == state and now.end_us == window.stretch.start_us:
                now.end_us = window.stretch.end_us
                now.total = now.total + window.probability
                now.windows += 1
            else:
                if now is not None:
                    yield self._event(now)
                stretch = window.stretch
                now = self._open = _Open(state, stretch.start_us, stretch.end_us, window.probability, 1, [])
            for warning in window.warnings:
                if len(now.warnings) < MOST_WARNINGS and warning not in now.warnings:
                    now.warnings.append(warning)

    def _end_readable(self) -> Iterator[TimelineEvent]:
        if self._smooths:
            yield from self._decide(self._smoother.end())
        if self._open is not None:
            yield self._event(self._open)
        self._open = None

    def _end_unread(self) -> Iterator[TimelineEvent]:
        if self._unread is not None:
            yield self._unread
        self._unread = None

    def _event(self, done: _Open) -> TimelineEvent:
        mean = np.asarray(done.total / done.windows)
        labels = self._answers.labels(mean)
        known = done.state != self._unknown
        return TimelineEvent(
            start_s=done.start_us / 1e6,
            end_s=done.end_us / 1e6,
            label=self._answers.model.labels[done.state] if known else UNKNOWN,
            probability=float(mean[done.state] if known else mean.max()),
            labels=labels,
            windows=done.windows,
            warnings=tuple(done.warnings),
        )
