"""The norm bound: the largest distance from the round's model that an update may have.

Two bounds on ‖w − w_t‖. **Reach** holds from the first round and is a theorem: no run of Adam with the round's settings
over so many examples ends farther away. **Learnt** holds once enough silos have a history: ``norm_times`` times the
median silo's largest update of the last closed rounds. Fewer than half of the silos cannot move a median past the
honest silos' values, so hostile ones cannot raise the bound step by step. Nothing of the open round enters: a bound
that depended on who reported first would refuse by the order of arrival.

docs/decisions/012-norm-bound.md has the measurements behind the constants here.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...fedproto.codecs import Codec
from ...fedproto.head import Params, TensorLayout
from ...fedproto.records import ADAM_BETAS, TrainSettings
from .contributions import DISTANCE_BLOCK

WINDOW = 10  # closed rounds that enter the learnt bound
SILOS_NEEDED = 3  # with a history: a median of fewer is no majority
# With an update a lossy codec also sends what it left out of earlier ones: the factor that this adds to Adam's reach.
CODEC_FACTOR: dict[Codec, float] = {"fp32": 1.0, "fp16": 1.5, "int8": 1.5, "sparse_int8": 10.0}
ROUNDING = 1.001  # float32 steps round; 1e-7 each


@dataclass(frozen=True)
class NormBound:
    """A round's bound. ``times`` = 0: none at all, for runs whose silos do not train as the settings say."""

    head: TensorLayout
    train: TrainSettings
    times: float  # the settings' [checks] norm_times
    round: int
    learnt_norm: float | None  # None while the run has no history

    def check(self, norm: float, examples: int, codec: Codec = "fp32", *, whose: str) -> None:
        """Raise DataError (``norm``) for an update that no honest silo sends. ``whose``: ``update from silo 'b'``."""
        if self.times <= 0:
            return
        far = CODEC_FACTOR[codec] * reach(self.head, self.train, self.round, examples)
        if norm > far:
            raise DataError(
                f"{whose}: {norm:.4g} away from the round's model, and training on {examples} examples "
                f"cannot go farther than {far:.4g}",
                code="norm",
            )
        most = math.inf if self.learnt_norm is None else self.times * self.learnt_norm
        if norm > most:
            raise DataError(
                f"{whose}: {norm:.4g} away from the round's model, expected at most {most:.4g}, "
                f"{self.times:g} times the median silo's farthest of the last {WINDOW} rounds",
                code="norm",
            )


def learnt_norm(farthest: Mapping[str, float]) -> float | None:
    """Return the median over the silos of each one's largest counted update; None with too few silos or no motion."""
    if len(farthest) < SILOS_NEEDED:
        return None
    return statistics.median(farthest.values()) or None


def reach(head: TensorLayout, train: TrainSettings, round_number: int, examples: int) -> float:
    """Return the largest distance that a round of Adam can end from its start, whatever the data and the loss.

    Step t moves a coordinate by rate · |m̂_t| / (√v̂_t + ε), and by Cauchy and Schwarz, for every sequence of
    gradients g_1 … g_t (m̂ and v̂ as in Kingma and Ba, algorithm 1, https://arxiv.org/abs/1412.6980),

        |m̂_t| / √v̂_t ≤ (1 − β₁)/(1 − β₁ᵗ) · √((1 − β₂ᵗ)/(1 − β₂)) · √(Σ_{i<t} (β₁²/β₂)ⁱ)

    summed over the round's steps, times the root of the number of coordinates. Terms of FedProx and FedDyn and
    weight decay are part of the gradient.
    """
    steps = train.epochs * math.ceil(examples / train.batch_size)
    rate = train.learning_rate * train.learning_rate_decay ** (round_number - 1)
    return ROUNDING * rate * adam_travel(steps) * math.sqrt(head.parameters)


@functools.cache
def adam_travel(steps: int) -> float:
    """Return the most that a coordinate moves in ``steps`` steps at rate 1."""
    one, two = ADAM_BETAS
    ratio = one**2 / two
    settled = min(steps, 20_000)  # the powers below have vanished by then
    total = step = 0.0
    for t in range(1, settled + 1):
        geometric = (1 - ratio**t) / (1 - ratio)
        step = (1 - one) / (1 - one**t) * math.sqrt((1 - two**t) / (1 - two) * geometric)
        total += step
    return total + (steps - settled) * step


class ArrivingDistance:
    """Checks an update's float32 values as their bytes arrive: are they finite, and how far are they from ``base``.

    Differences and the sums over a block are in float32, the sum over the blocks in float64: within 1e-6 of
    ``distance`` at a third of its time. A block whose squares float32 cannot hold is summed in float64.
    """

    def __init__(self, base: Params, *, whose: str) -> None:
        self._tensors = [(name, tensor.reshape(-1)) for name, tensor in base.items()]
        self._whose = whose
        self._rest = b""  # the first bytes of a value that a piece ended in
        self._place = 0  # values of the first tensor that have arrived
        self._squares = 0.0
        self._moved = np.empty(DISTANCE_BLOCK, np.float32)  # stays in the processor's cache

    @property
    def so_far(self) -> float:
        """The Euclidean norm of the values so far, minus ``base``."""
        return math.sqrt(self._squares)

    def feed(self, data: bytes | memoryview) -> None:
        """Check the payload's next bytes, no more than it has. Raises DataError (``not_finite``) naming the tensor."""
        if self._rest or len(data) % 4:
            data = self._rest + bytes(data)
            self._rest = data[len(data) - len(data) % 4 :]
        values = np.frombuffer(data, "<f4", count=len(data) // 4)
        while len(values):
            name, base = self._tensors[0]
            here = base[self._place : self._place + len(values)]
            self._add(name, values[: len(here)], here)
            values, self._place = values[len(here) :], self._place + len(here)
            if self._place == len(base):
                del self._tensors[0]
                self._place = 0

    def _add(self, name: str, there: npt.NDArray[np.float32], here: npt.NDArray[np.float32]) -> None:
        for start in range(0, len(here), DISTANCE_BLOCK):
            one, other = there[start : start + DISTANCE_BLOCK], here[start : start + DISTANCE_BLOCK]
            moved = self._moved[: len(one)]
            with np.errstate(over="ignore", invalid="ignore"):
                squares = float(np.dot(np.subtract(one, other, out=moved), moved))
            if not math.isfinite(squares):
                if not np.isfinite(one).all():
                    raise DataError(f"{self._whose}: {name} holds NaN or infinity", code="not_finite")
                squares = float(np.square(np.subtract(one, other, dtype=np.float64)).sum())
            self._squares += squares
