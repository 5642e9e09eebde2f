"""Smoothing of windows' answers over time: the likeliest sequence of actions, by a hidden Markov model. Pure.

States are the labels and ``unknown``. A window is evidence for each label by its calibrated probability, and for
``unknown`` by whether the likeliest label is likely enough; a single window's best state is the answer that it would
get alone. An action is left for another at a rate of one in ``seconds``. The best sequence is found by
the Viterbi algorithm (Viterbi 1967, doi 10.1109/TIT.1967.1054010), which here gives each part of it as soon as no later
window can change it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
MOST_UNDECIDED = 600  # windows: then the oldest is decided for the best sequence so far


@dataclass(frozen=True)
class Smoothing:
    """Settings of the smoothing, chosen in bench/timeline.py on seeds that nothing else is measured on.

    A window that is answered with a label counts up to ``most_evidence`` against each other state; one that is answered
    ``unknown`` says little, and counts at most ``most_doubt`` for ``unknown`` and against each label but the likeliest.
    """

    seconds: float = 4.0  # mean time from one change of action to the next
    most_evidence: float = 4.0  # nats
    most_doubt: float = 0.5  # nats
    steepness: float = 10.0  # from doubt, log-odds of a softened probability, to evidence

    def evidence(self, probability: Floats, doubt: float) -> Floats:
        """Return log-likelihoods, float64 [labels + 1], the likeliest label's being 0; the last is that of ``unknown``.

        ``probability``: float64 [labels]. ``doubt``: how far the likeliest label is from being likely enough
        (``Answers.doubt``): above 0 the answer is ``unknown``, -inf where it never is.
        """
        likeliest = max(float(probability.max()), 1e-300)
        logs = np.log(np.maximum(probability, 1e-300) / likeliest)
        known = np.maximum(logs, -(self.most_doubt if doubt > 0 else self.most_evidence))
        bounded = min(max(self.steepness * doubt, -self.most_evidence), self.most_doubt)
        return np.append(known, -math.inf if doubt == -math.inf else bounded)


class Smoother:
    """The best sequence of states, window by window. ``share``: of a window that the one before does not show.

    Windows that overlap are not independent: each counts for what the one before does not show, by ``share``.
    """

    def __init__(self, states: int, settings: Smoothing, *, stride_s: float, share: float) -> None:
        leaving = -math.expm1(-stride_s / settings.seconds)
        self._stay = math.log1p(-leaving)
        self._leave = math.log(leaving / max(1, states - 1))
        self._share = share
        self._score = np.zeros(states)
        self._came_from: deque[npt.NDArray[np.int64]] = deque()  # for each undecided window but the first
        self._undecided = 0

    def add(self, evidence: Floats) -> list[int]:
        """Take the next window's evidence, float64 [states]; return the states decided now, of the oldest windows."""
        weighted = np.where(np.isneginf(evidence), -math.inf, self._share * evidence)
        if self._undecided:
            best = int(self._score.argmax())
            staying, moving = self._score + self._stay, self._score[best] + self._leave
            came_from = np.where(staying >= moving, np.arange(len(self._score)), best)
            self._score = np.maximum(staying, moving) + weighted
            self._came_from.append(came_from)
        else:
            self._score = weighted.astype(np.float64)
        self._score = self._score - self._score.max()
        self._undecided += 1
        return self._decide()

    def end(self) -> list[int]:
        """Return the states of all windows that are undecided; the next window begins a sequence of its own."""
        path = self._path(int(self._score.argmax())) if self._undecided else []
        self._came_from.clear()
        self._undecided = 0
        return path

    def _decide(self) -> list[int]:
        """Return the states of the oldest windows on which all sequences agree, and forget these windows."""
        possible = np.flatnonzero(np.isfinite(self._score))
        agreed = 0
        for back, came_from in enumerate(reversed(self._came_from), 1):
            possible = np.unique(came_from[possible])
            if len(possible) == 1:
                agreed = self._undecided - back
                break
        if not agreed and self._undecided <= MOST_UNDECIDED:
            return []
        path = self._path(int(self._score.argmax()))
        decided = path[: max(1, agreed)]
        self._undecided -= len(decided)
        if not agreed:
            self._follow(path[len(decided)])
        for _ in range(len(decided)):
            self._came_from.popleft()
        return decided

    def _path(self, state: int) -> list[int]:
        """Return the states of the undecided windows of the sequence that ends in ``state``."""
        path = [state]
        for came_from in reversed(self._came_from):
            path.append(int(came_from[path[-1]]))
        return path[::-1]

    def _follow(self, second: int) -> None:
        """Rule out all sequences in which the second undecided window has another state."""
        for state in range(len(self._score)):
            if self._path(state)[1] != second:
                self._score[state] = -math.inf
