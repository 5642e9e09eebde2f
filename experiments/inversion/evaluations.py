"""An attack that reads a held-out clip out of a silo's reports of evaluations, as a malicious coordinator.

The attacker chooses the models that the silo evaluates and sees only the reports. A head with two small hidden layers
is enough:

- **Isolate.** A unit that is 1 above a threshold t along a direction v, and 0 below: the mean loss tells how many clips
  are above. Bisection finds a t above which a single clip is.
- **Measure.** A unit that is w·x for that clip and 0 for all others. The mean loss is a known function of w·x alone:
  the model adds an output for a class that no clip has, all other outputs are equal, so labels play no part.
- **Choose.** The next direction w is always the one that is least known; its range is laid over all values that a
  report can take. Where one clip moves the mean by less than a rounding step, the other clips' loss is set so that a
  rounding boundary lies in the middle of the range: then each report still gives a bit.

With exact losses each report gives a direction, and as many reports as dimensions give the clip.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...fedproto.head import HeadSpec, Params
from ...fedproto.records import Evaluation
from .belief import Belief, Prior

Array = npt.NDArray[Any]
Ask = Callable[[Params], Evaluation | None]  # None: no report, and no other one will come
HIDDEN = (3, 1)
SILENT = -30.0  # a logit that adds nothing to a loss
QUIET = 1e-3  # nats above the least possible loss: what the other clips get at least
LOUDEST = 12.0  # nats, the largest loss that the attack uses
STEEP = 400.0  # widths of a gate's ramp in a standard deviation
BISECTIONS = 60
SETTLING = 3  # measurements along the gate


@dataclass(frozen=True)
class Channel:
    """An attacker's knowledge of how reports are made: it reads the program like everyone."""

    clips: int  # held out, and reported as ``count``
    step: float = 0.0  # nats: reported losses are multiples of it; 0: exact
    cap: float = math.inf  # nats: a clip's loss counts as at most this
    noise: float = 0.0  # nats: standard deviation of noise on a reported loss
    noise_clips: float = 0.0  # standard deviation of noise on the number of correct predictions

    @property
    def exact(self) -> bool:
        return self.step == 0 and self.noise == 0


@dataclass(frozen=True)
class Gate:
    """A unit that is 0 up to ``threshold`` along ``direction``, and 1 from ``threshold + width`` on."""

    direction: Array
    threshold: float
    width: float


@dataclass(frozen=True)
class Probe:
    """A model's meaning: the others' loss, and the isolated clip's as a function of its value along ``row``."""

    row: Array | None  # None: the gate alone
    low: float  # the value that has the others' loss ...
    high: float  # ... and the one that has ``loudest``
    quiet: float  # nats
    loudest: float  # nats


@dataclass(eq=False)
class Stolen:
    """Result of an attack."""

    estimate: Array  # float64 [D]
    asked: int  # reports received
    gate: Gate | None  # that isolated the clip, as the attacker believes
    measured: int  # directions that at least one report was about
    why: str = ""  # it ended early


class _NoMoreReports(Exception):
    """The silo reports no more."""


@dataclass(eq=False)
class EvaluationAttack:
    """One attack on one silo; ``run`` once."""

    spec: HeadSpec  # hidden = HIDDEN; the last class is one that no clip has
    channel: Channel
    prior: Prior
    ask: Ask
    queries: int  # at most
    sure: float = 0.3  # clips: standard deviation down to which noisy counts are averaged
    along: int = 0  # the principal direction along which a clip is isolated
    asked: int = field(default=0, init=False)

    def run(self) -> Stolen:
        """Isolate a clip and measure it, until reports or queries end."""
        beliefs: dict[int, Belief] = {}
        gate: Gate | None = None
        why = ""
        try:
            gate = self._isolate()
            gate = self._settle(gate, beliefs)
            self._measure_all(gate, beliefs)
        except _NoMoreReports as end:
            why = str(end)
        values = np.zeros(len(self.prior.deviations))
        for index, belief in beliefs.items():
            values[index] = belief.mean - self.prior.mean @ self.prior.directions[index]
        estimate = np.maximum(self.prior.mean + values @ self.prior.directions, self.prior.floor)
        return Stolen(estimate, self.asked, gate, len(beliefs), why)

    # --- isolating a clip ---

    def _isolate(self) -> Gate:
        """Bisect for a threshold along a direction that exactly one clip is above."""
        direction = self.prior.directions[self.along]
        centre, deviation = float(self.prior.mean @ direction), float(self.prior.deviations[self.along])
        low, high = centre, centre + 12 * deviation
        threshold = centre + 2.5 * deviation
        for _ in range(BISECTIONS):
            gate = Gate(direction, threshold, deviation / STEEP)
            above = self._count(gate)
            if above == 1:
                return gate
            low, high = (threshold, high) if above > 1 else (low, threshold)
            step = 0.5 if high - low < 4 * deviation else 0.25
            threshold = low + step * (high - low)
        raise _NoMoreReports("no threshold has one clip above it")

    def _count(self, gate: Gate) -> int:
        """Number of clips above a gate's threshold: 0, 1, or 2 for more."""
        loss, correct = self._doubts(self._span())
        if min(math.hypot(loss, self.channel.step / 2 / self._moved()), correct) < 0.2:
            above, _ = self._above(gate, self._probe(None, 0.0, 1.0))
            return min(max(round(above), 0), 2)
        return sum(self._more_than(gate, clips + 0.5) for clips in (0, 1))

    def _more_than(self, gate: Gate, clips: float) -> bool:
        """Compare the number of clips above a gate with ``clips``, over as many reports as noise asks for."""
        probe, found, weights = self._probe(None, 0.0, 1.0, boundary_at=clips), 0.0, 0.0
        while weights < 1 / self.sure**2:
            above, weight = self._above(gate, probe)
            found, weights = found + weight * above, weights + weight
        return found > clips * weights

    def _above(self, gate: Gate, probe: Probe) -> tuple[float, float]:
        """Ask once: clips above the gate as the report has them, and that figure's weight (1 / variance)."""
        reported = self._report(gate, probe)
        loss, correct = (max(doubt, 0.05) for doubt in self._doubts(self._span()))
        by_loss = (reported.loss - probe.quiet) / self._moved()
        by_correct = reported.count - reported.correct if math.isfinite(correct) else 0.0
        weight = loss**-2 + correct**-2
        return (by_loss * loss**-2 + by_correct * correct**-2) / weight, weight

    def _doubts(self, span: float) -> tuple[float, float]:
        """Standard deviations of the noise on loss and on correct predictions, in clips."""
        clips = self.channel.noise_clips if self._one_class else math.inf
        return self.channel.noise * self.channel.clips / span, clips

    def _moved(self) -> float:
        return self._span() / self.channel.clips  # nats of the mean loss, by one clip

    def _settle(self, gate: Gate, beliefs: dict[int, Belief]) -> Gate:
        """Measure the isolated clip along the gate, and make the ramp as wide as the gap below the clip allows."""
        deviation = float(self.prior.deviations[self.along])
        belief = Belief.above(gate.threshold, deviation)
        for _ in range(1 if self.channel.exact else SETTLING):
            belief = self._measured(gate, self.along, belief)
        beliefs[self.along] = belief
        surely = max(belief.mean - 3 * belief.deviation - 0.02 * deviation, gate.threshold)
        return Gate(gate.direction, gate.threshold, max(0.9 * (surely - gate.threshold), gate.width))

    # --- measuring it ---

    def _measure_all(self, gate: Gate, beliefs: dict[int, Belief]) -> None:
        prior = self.prior
        waiting = [(-deviation, index) for index, deviation in enumerate(prior.deviations) if index not in beliefs]
        waiting += [(-belief.deviation, index) for index, belief in beliefs.items()]
        heapq.heapify(waiting)
        while waiting[0][0] < 0:
            _, index = heapq.heappop(waiting)
            known = beliefs.get(index)
            if known is None:
                known = Belief.normal(float(prior.mean @ prior.directions[index]), float(prior.deviations[index]))
            beliefs[index] = self._measured(gate, index, known)
            heapq.heappush(waiting, (-beliefs[index].deviation, index))

    def _measured(self, gate: Gate, index: int, known: Belief) -> Belief:
        """Ask once about a direction."""
        channel = self.channel
        fine = self._span() / channel.clips > 4 * max(channel.step, channel.noise)
        reach = (8.0 if channel.exact else 2.5 if fine else 0.5) * known.deviation
        probe = self._probe(self.prior.directions[index], known.mean - reach, known.mean + reach)
        reported = self._report(gate, probe)
        if channel.exact:
            loss = channel.clips * reported.loss - (channel.clips - 1) * probe.quiet
            return Belief.certain(self._value(probe, loss))
        return known.after(lambda values: self._likelihood(probe, values, reported))

    def _likelihood(self, probe: Probe, values: Array, reported: Evaluation) -> Array:
        """Probability of a report if the isolated clip had each of ``values``."""
        channel, losses = self.channel, self._loss(probe, values)
        means = ((channel.clips - 1) * probe.quiet + losses) / channel.clips
        spread = max(channel.noise, 1e-6)
        upper, lower = ((reported.loss + half - means) / spread for half in (channel.step / 2, -channel.step / 2))
        found = np.exp(-0.5 * upper**2) if channel.step == 0 else _normal_share(upper) - _normal_share(lower)
        if self._one_class:
            right = reported.count - (losses > math.log(2))
            found = found * np.exp(-0.5 * ((reported.correct - right) / max(channel.noise_clips, 0.2)) ** 2)
        return np.asarray(found)

    # --- models and their losses ---

    @property
    def _one_class(self) -> bool:
        """True when every clip is of the run's only real class: then correct predictions count clips too."""
        return self.spec.outputs == 2

    @property
    def _least(self) -> float:
        """Loss of a clip for which the extra class is silent, nats."""
        return math.log(self.spec.outputs - 1)

    def _span(self) -> float:
        """Nats by which one clip's loss can move."""
        return min(self.channel.cap, self._least + LOUDEST) - self._least - min(self.channel.step, 1.0) - QUIET

    def _probe(self, row: Array | None, low: float, high: float, *, boundary_at: float = 0.5) -> Probe:
        """Lay a range of values over the losses; where rounding is coarse, with a boundary at that part of a clip."""
        channel, span = self.channel, self._span()
        quiet = self._least + QUIET
        if channel.step > 0:
            middle = quiet + boundary_at * span / channel.clips
            quiet += (math.floor(middle / channel.step + 0.5) + 0.5) * channel.step - middle
        return Probe(row, low, high, quiet, quiet + span)

    def _logit(self, loss: float) -> float:
        """The extra class's logit that gives a clip this loss."""
        rest = math.expm1(loss - self._least)
        return self._least + math.log(rest) if rest > 0 else SILENT

    def _loss(self, probe: Probe, values: Array) -> Array:
        """Loss of the isolated clip with each of ``values`` along the probe's row."""
        quiet, loudest = self._logit(probe.quiet), self._logit(probe.loudest)
        active = np.maximum((values - probe.low) / (probe.high - probe.low), 0.0)
        return np.minimum(np.logaddexp(self._least, quiet + (loudest - quiet) * active), self.channel.cap)

    def _value(self, probe: Probe, loss: float) -> float:
        quiet, loudest = self._logit(probe.quiet), self._logit(probe.loudest)
        return probe.low + (self._logit(loss) - quiet) / (loudest - quiet) * (probe.high - probe.low)

    def _model(self, gate: Gate, probe: Probe) -> Params:
        """The head whose loss is the probe's for a clip above the gate, and ``probe.quiet`` for all others."""
        weights = {name: np.zeros(shape) for name, shape in self.spec.shapes.items()}
        steep = 1 / gate.width
        weights["0.weight"][:2] = gate.direction * steep
        weights["0.bias"][:2] = -gate.threshold * steep, -gate.threshold * steep - 1
        if probe.row is None:
            weights["1.weight"][0, :2] = 1, -1
        else:
            wide = probe.high - probe.low
            shift = abs(probe.low) + 60 * float(self.prior.deviations[0])  # so that the unit is linear for all clips
            shut = 2 * shift / wide
            weights["0.weight"][2], weights["0.bias"][2] = probe.row, shift
            weights["1.weight"][0] = shut, -shut, 1 / wide
            weights["1.bias"][0] = -(shift + probe.low) / wide - shut
        quiet, loudest = self._logit(probe.quiet), self._logit(probe.loudest)
        weights["2.weight"][-1, 0], weights["2.bias"][-1] = loudest - quiet, quiet
        return {name: tensor.astype(np.float32) for name, tensor in weights.items()}

    def _report(self, gate: Gate, probe: Probe) -> Evaluation:
        """Ask for one report. Raises _NoMoreReports."""
        if self.asked >= self.queries:
            raise _NoMoreReports("queries")
        found = self.ask(self._model(gate, probe))
        if found is None:
            raise _NoMoreReports("refused")
        self.asked += 1
        return found


def _normal_share(z: Array) -> Array:
    """Share of the normal distribution below ``z``, to 1e-3."""
    return np.asarray(0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))))
