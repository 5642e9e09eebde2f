"""Range of each activation on calibration clips, cut where int8's squared error is smallest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...runtime.backends.onnxruntime_cpu import open_session

Feeds = Mapping[str, npt.NDArray[Any]]
BINS = 2048
SAMPLE = 200_000  # values of one activation and one feed that are counted; its largest is found among all
TWO_SIDED = 0.25  # of the longer side: a value is two-sided when its shorter one reaches so far; a GELU's does not
_CUTS = np.linspace(0.3, 1.0, 36)  # shares of the largest magnitude that are tried as the end of the range


@dataclass(frozen=True)
class Range:
    """Range ``low`` <= 0 <= ``high`` of the values that int8 covers; those outside are clipped."""

    low: float
    high: float


@dataclass(eq=False)
class _Histogram:
    """Histogram of seen values, over a span that doubles when a value lies outside."""

    span: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: npt.NDArray[np.float32]) -> None:
        largest = float(np.abs(values).max(initial=0.0))
        if not np.isfinite(largest):
            raise DataError(
                "the fp32 graph gives values that are not finite on the calibration clips",
                fix="check the weights (flamest-export verify-weights SRC), or other clips with --calibration",
            )
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


def observe(
    model: Any, names: Sequence[str], feeds: Iterable[Feeds], *, symmetric: bool, threads: int | None = None
) -> dict[str, Range]:
    """Run the fp32 ``model`` (an ``onnx.ModelProto``) on ``feeds`` and find the range of each value of ``names``.

    Raises DataError when a value is not finite, or no feed was given.
    """
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {value.name for value in model.graph.input}
    made = [name for name in dict.fromkeys(names) if name not in given]
    outputs = {value.name for value in model.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in made if name not in outputs
    )
    session = open_session(watched.SerializeToString(), threads=threads)
    histograms = {name: _Histogram() for name in names}
    for feed in feeds:
        found = {**feed, **(session.run(feed, made) if made else {})}
        for name, histogram in histograms.items():
            histogram.add(found[name])
    if not all(histogram.span for histogram in histograms.values()):
        raise DataError("int8 needs calibration clips, and none were given", fix="give a folder with --calibration DIR")
    return {name: histogram.best_range(symmetric=symmetric) for name, histogram in histograms.items()}
