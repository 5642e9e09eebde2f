"""Evaluations, inside an update's header and as a report of their own (ReportEvaluation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...base.errors import DataError
from ..bounds import MAX_LOSS, MAX_SUBJECTS, is_loss
from ..records import ClassCount, Evaluation, SubjectEvaluation
from .parsing import MAX_EXAMPLES, SHA256_BYTES, digest_hex, malformed_error, parse

if TYPE_CHECKING:
    from .. import flamest_v1_pb2 as pb


@dataclass(frozen=True)
class EvaluationReport:
    """A silo's final evaluation, at the end of a run."""

    settings_sha256: str
    round: int  # the last of the run
    results: tuple[SubjectEvaluation, ...]  # ascending subjects; none: it declines


@dataclass(frozen=True)
class EvaluationReceipt:
    """Confirmation that the report is durable on the coordinator."""

    round: int
    results: int


def encode_evaluation(evaluation: Evaluation) -> pb.Evaluation:
    """Return the message of an evaluation."""
    from .. import flamest_v1_pb2 as pb

    by_class = [pb.ClassCount(label=one.label, correct=one.correct, count=one.count) for one in evaluation.by_class]
    return pb.Evaluation(loss=evaluation.loss, correct=evaluation.correct, count=evaluation.count, by_class=by_class)


def decode_evaluation(message: pb.Evaluation) -> Evaluation:
    """Return the evaluation of a message. Raises DataError (``evaluation``) for impossible figures."""
    loss, correct, count = message.loss, message.correct, message.count
    if not (is_loss(loss) and correct <= count and 1 <= count < MAX_EXAMPLES):
        raise DataError(
            f"an evaluation of loss {loss} with {correct} of {count} correct, "
            f"expected a finite loss of 0 to {MAX_LOSS:g} and no more correct than counted",
            code="evaluation",
        )
    by_class = tuple(ClassCount(one.label, one.correct, one.count) for one in message.by_class)
    _check_classes(by_class, correct, count)
    return Evaluation(loss, correct, count, by_class)


def _check_classes(by_class: Sequence[ClassCount], correct: int, count: int) -> None:
    labels = [one.label for one in by_class]
    if (
        labels != sorted(set(labels))
        or any(not one.correct <= one.count or one.count < 1 for one in by_class)
        or sum(one.count for one in by_class) > count
        or sum(one.correct for one in by_class) > correct
    ):
        raise DataError(
            "an evaluation whose classes do not add up: expected each class once, ascending, "
            "and in all no more than the whole",
            code="evaluation",
        )


def encode_evaluation_report(report: EvaluationReport) -> bytes:
    from .. import flamest_v1_pb2 as pb

    results = [
        pb.SubjectEvaluation(subject=one.subject, evaluation=encode_evaluation(one.evaluation))
        for one in report.results
    ]
    return pb.EvaluationReport(
        settings_sha256=bytes.fromhex(report.settings_sha256), round=report.round, results=results
    ).SerializeToString()


def decode_evaluation_report(data: bytes) -> EvaluationReport:
    """Decode a report. DataError codes besides ``malformed``: ``evaluation``."""
    from .. import flamest_v1_pb2 as pb

    report = parse(pb.EvaluationReport(), data)
    subjects = [one.subject for one in report.results]
    if len(subjects) > MAX_SUBJECTS or subjects != sorted(set(subjects)):
        raise malformed_error("EvaluationReport", f"expected at most {MAX_SUBJECTS} subjects, each once, ascending")
    return EvaluationReport(
        settings_sha256=digest_hex(report.settings_sha256, SHA256_BYTES, "settings_sha256"),
        round=report.round,
        results=tuple(SubjectEvaluation(one.subject, decode_evaluation(one.evaluation)) for one in report.results),
    )


def encode_evaluation_receipt(receipt: EvaluationReceipt) -> bytes:
    from .. import flamest_v1_pb2 as pb

    return pb.EvaluationReceipt(round=receipt.round, results=receipt.results).SerializeToString()


def decode_evaluation_receipt(data: bytes) -> EvaluationReceipt:
    from .. import flamest_v1_pb2 as pb

    receipt = parse(pb.EvaluationReceipt(), data)
    return EvaluationReceipt(receipt.round, receipt.results)
