"""How far from the round's model an update may be: what Adam can travel, and what the run has seen.

Two bounds on ‖w − w_t‖. **Reach** holds from the first round and is a theorem: no run of Adam with the round's settings
over so many examples ends farther away. **Learnt** holds once enough silos have a history: so many times the median
silo's largest update of the last closed rounds. Fewer than half of the silos cannot move a median past the honest
silos' values, so hostile ones cannot raise the bound step by step. Nothing of the open round enters: a bound that
depended on who reported first would refuse by the order of arrival.

Decision 012 has the measurements behind the numbers here.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from ...base.errors import DataError
from ...fedproto.codecs import Codec
from ...fedproto.head import HeadSpec
from ...fedproto.records import TrainSettings

ADAM_BETAS = (0.9, 0.999)  # of local training
WINDOW = 10  # closed rounds that are remembered
SILOS_NEEDED = 3  # with a history: a median of fewer is no majority
# A lossy codec sends with an update what it left out of earlier ones: what that may add to Adam's reach.
ROOM: dict[Codec, float] = {"fp32": 1.0, "fp16": 1.5, "int8": 1.5, "sparse_int8": 10.0}
ROUNDING = 1.001  # float32 steps round; 1e-7 each


@dataclass(frozen=True)
class NormBound:
    """The round's bound. ``times`` = 0: none at all, for runs whose silos do not train as the settings say."""

    head: HeadSpec
    train: TrainSettings
    times: float  # the settings' [checks] norm_times
    round: int
    learnt: float | None  # None while the run has no history

    def check(self, norm: float, examples: int, codec: Codec = "fp32", *, whose: str) -> None:
        """DataError (``norm``) for an update that no honest silo sends. ``whose``: ``update from silo 'b'``."""
        if self.times <= 0:
            return
        far = ROOM[codec] * reach(self.head, self.train, self.round, examples)
        if norm > far:
            raise DataError(
                f"{whose}: {norm:.4g} away from the round's model, and training on {examples} examples "
                f"cannot go farther than {far:.4g}",
                code="norm",
            )
        if self.learnt is not None and norm > self.times * self.learnt:
            raise DataError(
                f"{whose}: {norm:.4g} away from the round's model, expected at most {self.times * self.learnt:.4g}, "
                f"{self.times:g} times the median silo's farthest of the last {WINDOW} rounds",
                code="norm",
            )


def learnt_norm(farthest: Mapping[str, float]) -> float | None:
    """The median over the silos of each one's farthest counted update; None with too few silos or no motion."""
    if len(farthest) < SILOS_NEEDED:
        return None
    return statistics.median(farthest.values()) or None


def reach(head: HeadSpec, train: TrainSettings, round_number: int, examples: int) -> float:
    """The farthest that a round of Adam can end from where it began, whatever the data and the loss.

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
    """The most that a coordinate moves in so many steps at rate 1."""
    one, two = ADAM_BETAS
    ratio = one**2 / two
    settled = min(steps, 20_000)  # the powers below have vanished by then
    total = step = 0.0
    for t in range(1, settled + 1):
        geometric = (1 - ratio**t) / (1 - ratio)
        step = (1 - one) / (1 - one**t) * math.sqrt((1 - two**t) / (1 - two) * geometric)
        total += step
    return total + (steps - settled) * step
