"""Updates, evaluations and numbers for a calibration in the bytes that leave the silo."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...fedproto.calibration_counts import CountedClips
from ...fedproto.messages import (
    CalibrationReport,
    EvaluationReport,
    UpdateHeader,
    encode_calibration_report,
    encode_evaluation_report,
    encode_update_header,
)
from ...fedproto.records import RunSettings, SubjectEvaluation, TaskStatus, Update
from ...fedproto.tensors import param_views, shapes


@dataclass(frozen=True, eq=False)
class UpdateMessage:
    """An update in the bytes that are sent."""

    header: UpdateHeader
    encoded_header: bytes
    payload: Sequence[memoryview]  # the parameters, in the head's order

    @classmethod
    def of(cls, run: RunSettings, update: Update) -> UpdateMessage:
        """Encode ``update``. Raises DataError for parameters that are not the head's, or not finite."""
        encoded = update.encoded
        payload = param_views(run.head, update.params or {}) if encoded is None else [memoryview(encoded.payload)]
        header = UpdateHeader(
            settings_sha256=run.sha256,
            round=update.round,
            base_sha256=update.base_sha256,
            update_id=update.update_id,
            examples=update.examples,
            shapes=shapes(run.head),
            payload_bytes=sum(map(len, payload)),
            payload_sha256=_sha256(payload),
            evaluation=update.evaluation,
            codec=encoded.codec if encoded else "fp32",
            codec_error=encoded.error if encoded else 0.0,
            shared=update.shared,
        )
        return cls(header, encode_update_header(header), payload)

    @property
    def size(self) -> int:
        """Bytes of the header and of the payload; TLS and HTTP/2 come on top."""
        return len(self.encoded_header) + self.header.payload_bytes


@dataclass(frozen=True, eq=False)
class EvaluationMessage:
    """A report on the models evaluated at the end of a run, in the bytes that are sent."""

    report: EvaluationReport
    encoded: bytes

    @classmethod
    def of(cls, run: RunSettings, round_number: int, results: Sequence[SubjectEvaluation]) -> EvaluationMessage:
        report = EvaluationReport(run.sha256, round_number, tuple(results))
        return cls(report, encode_evaluation_report(report))


@dataclass(frozen=True, eq=False)
class CalibrationMessage:
    """Numbers for one step of a calibration, in the bytes that are sent."""

    report: CalibrationReport
    encoded: bytes

    @classmethod
    def of(cls, run: RunSettings, task: TaskStatus, found: CountedClips | None) -> CalibrationMessage:
        """Encode ``found``; None: this silo declines."""
        count, noise, figures = (0, 0.0, None) if found is None else (found.clips, found.noise, found.figures)
        report = CalibrationReport(run.sha256, task.round, task.temperature, count, noise, figures)
        return cls(report, encode_calibration_report(report))


def _sha256(payload: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for part in payload:
        digest.update(part)
    return digest.hexdigest()
