"""One line of the egress ledger: its fields, and the only way to and from its bytes.

A line that is written is decoded first as a reader will decode it: what a reader would not accept is never written.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ...base.clock import parse_utc
from ...base.errors import DataError, printable
from ...fedproto.calibration_counts import ClassScores, ConfidenceSums, CountedClips, ScoreCounts
from ...fedproto.messages import CalibrationReport
from ...fedproto.records import ClassCount, Evaluation, SubjectEvaluation
from .accountant import Spend

# Numbers for a calibration have less noise than an evaluation's figures, so they count as the evaluations of so many
# models as tell the same of a single clip: numbers that a clip moves, over the square of the noise's share
# (docs/decisions/046-calibration-by-counts.md).
NOISE_SHARE = 0.5  # of policy.evaluation_noise
SUMS_COST, COUNTS_COST, CLASSES_COST = 8, 4, 8
MAX_LINE = 1 << 20  # bytes; an honest line has 1 to 100 KiB
MAX_STEPS = 10**12  # of a spend

EntryType = Literal["enrolment", "policy", "update", "evaluation", "calibration", "refused", "withdrawn"]


class TensorSent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str  # of the head's tensor
    shape: tuple[int, ...]
    dtype: str  # of its values on the wire


class ReportedResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that was reported about one model."""

    loss: float  # nats
    correct: int
    count: int
    subject: int = 0  # 0: the round's model, or the final one
    by_class: tuple[tuple[int, int, int], ...] = ()  # label, correct, count

    @classmethod
    def of(cls, evaluation: Evaluation, subject: int = 0) -> ReportedResult:
        by_class = tuple((one.label, one.correct, one.count) for one in evaluation.by_class)
        return cls(evaluation.loss, evaluation.correct, evaluation.count, subject, by_class)

    def result(self) -> SubjectEvaluation:
        """Return the result as it was sent."""
        by_class = tuple(ClassCount(*one) for one in self.by_class)
        return SubjectEvaluation(self.subject, Evaluation(self.loss, self.correct, self.count, by_class))


class ReportedCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that was reported for one step of a calibration."""

    temperature: float  # 0: sums of confidence; otherwise counts of scores at this temperature
    count: int = 0  # held-out clips; 0: it was declined
    noise: float = 0.0  # standard deviation of the noise on each number, in clips
    excess: int = 0
    lost: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    by_class: tuple[tuple[int, int, tuple[int, ...]], ...] = ()  # label, clips, counts

    @classmethod
    def of(cls, report: CalibrationReport) -> ReportedCounts:
        temperature, count, noise, figures = report.temperature, report.count, report.noise, report.figures
        if isinstance(figures, ConfidenceSums):
            return cls(temperature, count, noise, figures.excess, figures.lost)
        if isinstance(figures, ScoreCounts):
            by_class = tuple((one.label, one.clips, one.counts) for one in figures.by_class)
            return cls(temperature, count, noise, counts=figures.counts, by_class=by_class)
        return cls(temperature)

    def figures(self) -> CountedClips | None:
        """Return the numbers as they were sent; None: it was declined."""
        if self.count == 0:
            return None
        by_class = tuple(ClassScores(*one) for one in self.by_class)
        found = ScoreCounts(self.counts, by_class) if self.temperature else ConfidenceSums(self.excess, self.lost)
        return CountedClips(self.count, self.noise, found)

    @property
    def models(self) -> int:
        """Return how many models' evaluations tell as much of a clip: these numbers have less noise than theirs."""
        if self.count == 0:
            return 0
        return SUMS_COST if self.temperature == 0 else COUNTS_COST + (CLASSES_COST if self.by_class else 0)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line."""

    n: int  # from 1
    time: str  # UTC
    what: EntryType
    previous: str  # SHA-256 of the line before
    run: str = ""
    run_sha256: str = ""  # of the run's settings
    split: str = ""  # hash of what a coordinator chooses that the choice of held-out clips follows from
    round: int = 0
    model_sha256: str = ""  # what: evaluation; the run's final model
    update_id: str = ""
    examples: int = 0  # clips that an update was trained on, as reported to the coordinator
    tensors: tuple[TensorSent, ...] = ()
    codec: str = ""
    bytes: int = 0  # of the messages: the header and the values; TLS and HTTP/2 come on top
    sha256: str = ""  # of the values as sent; of a certificate
    header_sha256: str = ""  # of the message before the values: counts, digests, evaluation
    reported: dict[
        str, float
    ] = {}  # the first of ``results`` in short: loss, correct, count, and the number of classes reported one by one
    results: tuple[ReportedResult, ...] = ()  # every figure that was reported, model by model
    withheld: str = ""  # why an update left without an evaluation: evaluations_spent, splits_spent
    models: int = 0  # what: evaluation; number of models evaluated
    counted: ReportedCounts | None = None  # what: calibration
    shared: bool = False  # other silos may evaluate the update
    policy_sha256: str = ""  # of the policy that an update was sent under
    privacy: Spend | None = None  # record-dp: privacy spent by the update's training
    policy: dict[str, Any] = {}  # what: policy
    overrides: tuple[str, ...] = ()  # where the policy is weaker than FLAMeST's default
    code: str = ""  # of a refusal
    detail: str = ""  # for people

    @property
    def evaluated_models(self) -> int:
        """Number of models whose evaluation this entry reports; lines without ``results`` have it in other fields.

        Numbers for a calibration tell as much as the evaluations of several models.
        """
        if self.counted is not None:
            return self.counted.models
        return len(self.results) or self.models or bool(self.reported)


def encode_entry(entry: Entry) -> bytes:
    """Return the line, without its end. Raises DataError (``not_recordable``) for one that a reader would not accept.

    Nothing may be sent that such a line stands for.
    """
    try:
        line = msgspec.json.encode(entry)
        if len(line) > MAX_LINE:
            raise ValueError(f"it has {len(line)} bytes, expected at most {MAX_LINE}")
        if decode_entry(line) != entry:
            raise ValueError("its bytes decode to another one")
    except (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise DataError(
            f"the egress ledger cannot hold an entry '{entry.what}': {printable(str(error))[:200]}; what is not in the "
            "ledger is not sent",
            fix="please report it; the daemon goes on with the next round",
            code="not_recordable",
        ) from error
    return line


def decode_entry(line: bytes) -> Entry:
    """Decode a line. Raises msgspec.DecodeError or UnicodeDecodeError for bytes that are no JSON (a crash may leave
    such), msgspec.ValidationError or RecursionError for JSON that is not an entry.
    """
    entry = msgspec.json.decode(line, type=Entry)
    try:
        known = parse_utc(entry.time).tzinfo is not None
    except ValueError:
        known = False
    if not known:
        raise msgspec.ValidationError("its time is not one in UTC")
    spend = entry.privacy
    if spend is not None and not (0 <= spend.rate <= 1 and spend.multiplier >= 0 and 0 <= spend.steps <= MAX_STEPS):
        raise msgspec.ValidationError("its privacy spent is not a rate from 0 to 1, a multiplier and a number of steps")
    return entry
