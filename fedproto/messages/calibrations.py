"""Reports of counts that calibrate a run's final model (ReportCalibration)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...base.errors import DataError
from ..bounds import MAX_LABELS, number_problems, shortened
from ..calibration import TEMPERATURES
from ..calibration_counts import ClassScores, ConfidenceSums, ScoreCounts
from .parsing import MAX_EXAMPLES, SHA256_BYTES, digest_hex, parse

if TYPE_CHECKING:
    from .. import flamest_v1_pb2 as pb

MAX_NOISE = 1e6  # clips


@dataclass(frozen=True)
class CalibrationReport:
    """A silo's counts for one step of a calibration."""

    settings_sha256: str
    round: int  # the last of the run
    temperature: float  # as announced; 0 with sums
    count: int  # held-out clips; 0: it declines
    noise: float  # standard deviation of the noise on each number, in clips
    figures: ConfidenceSums | ScoreCounts | None  # None: it declines

    def problems(self) -> list[str]:
        """Return what cannot be a report, whatever the run."""
        if self.figures is None:
            return [] if self.count == 0 and self.noise == 0 else ["count: of clips without their numbers"]
        if isinstance(self.figures, ConfidenceSums) != (self.temperature == 0):
            return ["temperature: expected 0 with sums, and more with counts"]
        return [
            *(number_problems("temperature", self.temperature, *TEMPERATURES) if self.temperature else ()),
            *number_problems("count", self.count, 1, MAX_EXAMPLES - 1),
            *number_problems("noise", self.noise, 0, MAX_NOISE),
            *self.figures.problems(self.count),
        ]


def encode_calibration_report(report: CalibrationReport) -> bytes:
    from .. import flamest_v1_pb2 as pb

    figures = report.figures
    return pb.CalibrationReport(
        settings_sha256=bytes.fromhex(report.settings_sha256),
        round=report.round,
        temperature=report.temperature,
        count=report.count,
        noise=report.noise,
        sums=_sums_message(figures) if isinstance(figures, ConfidenceSums) else None,
        counts=_counts_message(figures) if isinstance(figures, ScoreCounts) else None,
    ).SerializeToString()


def _sums_message(sums: ConfidenceSums) -> pb.ConfidenceSums:
    from .. import flamest_v1_pb2 as pb

    return pb.ConfidenceSums(excess=sums.excess, lost=sums.lost)


def _counts_message(counts: ScoreCounts) -> pb.ScoreCounts:
    from .. import flamest_v1_pb2 as pb

    by_class = [pb.ClassScores(label=one.label, clips=one.clips, counts=one.counts) for one in counts.by_class]
    return pb.ScoreCounts(counts=counts.counts, by_class=by_class)


def decode_calibration_report(data: bytes) -> CalibrationReport:
    """Decode a report. DataError codes besides ``malformed``: ``evaluation`` for figures that are impossible."""
    from .. import flamest_v1_pb2 as pb

    message = parse(pb.CalibrationReport(), data)
    report = CalibrationReport(
        settings_sha256=digest_hex(message.settings_sha256, SHA256_BYTES, "settings_sha256"),
        round=message.round,
        temperature=message.temperature,
        count=message.count,
        noise=message.noise,
        figures=_figures(message),
    )
    if problems := report.problems():
        raise DataError(f"counts for a calibration: {shortened('; '.join(problems))}", code="evaluation")
    return report


def _figures(message: pb.CalibrationReport) -> ConfidenceSums | ScoreCounts | None:
    if message.HasField("sums") and message.HasField("counts"):
        raise DataError("counts for a calibration: sums and counts at once, expected one of them", code="evaluation")
    if message.HasField("sums"):
        return ConfidenceSums(message.sums.excess, tuple(message.sums.lost))
    if not message.HasField("counts"):
        return None
    counts = message.counts
    if len(counts.by_class) > MAX_LABELS:
        raise DataError(f"counts for a calibration: of {len(counts.by_class)} classes", code="evaluation")
    by_class = tuple(ClassScores(one.label, one.clips, tuple(one.counts)) for one in counts.by_class)
    return ScoreCounts(tuple(counts.counts), by_class)


def encode_calibration_receipt(round_number: int) -> bytes:
    from .. import flamest_v1_pb2 as pb

    return pb.CalibrationReceipt(round=round_number).SerializeToString()


def decode_calibration_receipt(data: bytes) -> int:
    """Return the round that a receipt is for."""
    from .. import flamest_v1_pb2 as pb

    return parse(pb.CalibrationReceipt(), data).round
