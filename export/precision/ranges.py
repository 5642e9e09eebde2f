"""Activations on calibration clips: range that int8 covers, mean of each channel, largest magnitude.

A range is cut where int8's squared error is smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...runtime.backends.onnxruntime_cpu import open_session

Feeds = Mapping[str, npt.NDArray[Any]]
BINS = 2048
SAMPLE = 200_000  # values of one activation and one feed that are counted; its largest is found among all
# The range beyond the cut, for clips other than those of calibration. Behind a norm values keep their scale; through a
# convolutional network a clip of stronger contrast carries it to the end (real clips were seen at 4 times the cut).
HEADROOM: Mapping[str, float] = {"MatMul": 1.2, "Conv": 1.5}  # by the operator that reads the value
TWO_SIDED = 0.25  # of the longer side: a value is two-sided when its shorter one reaches so far; a GELU's does not
_CUTS = np.linspace(0.3, 1.0, 36)  # shares of the largest magnitude that are tried as the end of the range


@dataclass(frozen=True)
class Range:
    """Range ``low`` <= 0 <= ``high`` of the values that int8 covers; those outside are clipped."""

    low: float
    high: float

    def widened(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)


@dataclass(eq=False)
class _Histogram:
    """Histogram of seen values, over a span that doubles when a value lies outside."""

    span: float = 0.0
    largest: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: npt.NDArray[np.float32]) -> None:
        largest = float(np.abs(values).max(initial=0.0))
        if not np.isfinite(largest):
            raise DataError(
                "the fp32 graph gives values that are not finite on the calibration clips",
                fix="check the weights (flamest-export verify-weights SRC), or other clips with --calibration",
            )
        self.largest = max(self.largest, largest)
        if self.span == 0.0:
            self.span = largest or 1.0
        while largest > self.span:
            middle = self.counts.reshape(BINS // 2, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 4, np.int64), middle, np.zeros(BINS // 4, np.int64)])
            self.span *= 2
        some = values.ravel()
        if some.size > SAMPLE:  # drawn: every n-th would see some channels of the last axis only
            some = some[np.random.default_rng(0).integers(0, some.size, SAMPLE)]
        self.counts += np.histogram(some, BINS, (-self.span, self.span))[0]

    def best_range(self, *, symmetric: bool) -> Range:
        """The cut of least squared error with 256 levels (255 around zero when ``symmetric``).

        A value that is seen on both sides gets a range as wide on the one as on the other: the calibration clips may
        not have shown how far it goes on the shorter side, and that costs less than a bit.
        """
        edges = np.linspace(-self.span, self.span, BINS + 1)
        middles, seen = (edges[1:] + edges[:-1]) / 2, np.flatnonzero(self.counts)
        low, high = min(0.0, edges[seen[0]]), max(0.0, edges[seen[-1] + 1])
        symmetric = symmetric or min(-low, high) > TWO_SIDED * max(-low, high)
        best, least = Range(low, high), np.inf
        for cut in _CUTS:
            ends = Range(low * cut, high * cut)
            if symmetric:
                largest = max(-ends.low, ends.high)
                ends = Range(-largest, largest)
            step = (ends.high - ends.low) / 255
            lost = np.maximum(ends.low - middles, 0) + np.maximum(middles - ends.high, 0)
            error = float((self.counts * np.where(lost > 0, lost**2, step**2 / 12)).sum())
            if error < least:
                best, least = ends, error
        return best


@dataclass(frozen=True, eq=False)
class Seen:
    """One value on all feeds."""

    range: Range
    largest: float  # magnitude
    mean: npt.NDArray[np.float64] | None = None  # [channels]; None where no axis of channels was given


@dataclass(eq=False)
class _Mean:
    """Mean over all positions but those of one axis."""

    axis: int
    total: Any = 0.0
    count: int = 0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        others = tuple(index for index in range(values.ndim) if index != self.axis % values.ndim)
        self.total = self.total + values.sum(axis=others, dtype=np.float64)
        self.count += values.size // values.shape[self.axis]

    def value(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.total / self.count)


def observe(
    model: Any,
    channels: Mapping[str, int | None],
    feeds: Iterable[Feeds],
    *,
    symmetric: bool,
    threads: int | None = None,
    seen: Callable[[], None] = lambda: None,
) -> dict[str, Seen]:
    """Run ``model`` (an ``onnx.ModelProto`` that ONNX Runtime can run) on ``feeds``, and describe some of its values.

    ``channels``: the values' names, each with the axis of its channels where their means are wanted. ``seen``: called
    after each feed.
    Raises DataError when a value is not finite, or no feed was given.
    """
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {value.name for value in model.graph.input}
    made = [name for name in channels if name not in given]
    outputs = {value.name for value in model.graph.output}
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made if name not in outputs)
    session = open_session(watched.SerializeToString(), threads=threads)
    histograms = {name: _Histogram() for name in channels}
    means = {name: _Mean(axis) for name, axis in channels.items() if axis is not None}
    for feed in feeds:
        found = {**feed, **(session.run(feed, made) if made else {})}
        for name in channels:
            values = np.asarray(found[name], np.float32)
            histograms[name].add(values)
            if name in means and values.size:
                means[name].add(values)
        seen()
    if not all(histogram.span for histogram in histograms.values()):
        raise DataError("int8 needs calibration clips, and none were given", fix="give a folder with --calibration DIR")
    return {
        name: Seen(
            histogram.best_range(symmetric=symmetric),
            histogram.largest,
            means[name].value() if name in means else None,
        )
        for name, histogram in histograms.items()
    }
