"""The state machine of a run: when a round opens, whose update counts, when it ends. No clock, no socket, no disk.

An open round ends in one of two ways: CLOSE when enough silos have reported, or at its deadline with
at least ``min_silos``; ABANDON at the deadline with fewer. Then the model stays, and the next round
number starts from it. The deadline runs from the first silo that gets the round: a run without
silos waits in one round instead of abandoning one after another.

    opened ──on_contact──> deadline set ──on_update──> … ──on_tick──> CLOSE | ABANDON ──after_*──> next round

Every function takes a state and returns the next one; nothing is changed in place. Times are seconds of
one monotonic clock, the caller's.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ..base.errors import InvariantError
from ..fedproto.records import Phase


@dataclass(frozen=True)
class RoundPolicy:
    """The run's settings about rounds."""

    rounds: int  # rounds that must close
    min_silos: int
    deadline_s: float


@dataclass(frozen=True)
class UpdateSummary:
    """A silo's update without its values."""

    silo: str
    update_id: str
    examples: int
    digest: str  # over everything in the update: the same id with another digest is another update


@dataclass(frozen=True)
class Submission:
    """A silo's update as the round sees it."""

    round: int
    base_sha256: str
    summary: UpdateSummary


@dataclass(frozen=True)
class Cohort:
    """The silos that a round opens for."""

    silos: frozenset[str]  # enrolled when it opens
    wanted: int  # reports that close it before the deadline

    @classmethod
    def call(cls, silos: frozenset[str], wanted: int | None, share: float | None, min_silos: int) -> Cohort:
        """Return a cohort that wants ``wanted`` reports, or ``share`` of the silos, or all; at least ``min_silos``."""
        if wanted is None:
            wanted = len(silos) if share is None else math.ceil(share * len(silos) - 1e-9)
        return cls(silos, max(wanted, min_silos))


@dataclass(frozen=True)
class OpenRound:
    """The round that is open."""

    number: int
    cohort: Cohort
    deadline: float | None = None  # None until the first silo gets the round
    accepted: Mapping[str, UpdateSummary] = field(default_factory=lambda: MappingProxyType({}))  # by silo
    declined: frozenset[str] = frozenset()  # silos that will not report

    @property
    def enough(self) -> int:
        """Reports that close it now: those wanted, or those of all silos that can still report if these are fewer."""
        return min(self.cohort.wanted, len((self.cohort.silos - self.declined) | self.accepted.keys()))


@dataclass(frozen=True)
class RunState:
    """The state of a run."""

    policy: RoundPolicy
    closed: int  # rounds that closed
    model_sha256: str  # the current global model
    last_round: int  # number of the round that ended last, 0 for none
    open: OpenRound | None  # None: the run is finished
    # By silo: the last closed round in which its update counts.
    counted: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


class Verdict(enum.Enum):
    """Decision about a submission; the value is the code of the refusal."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # the same update again: same receipt
    REUSED_ID = "reused_id"  # the same update id with other content
    ALREADY_ANSWERED = "already_answered"  # another update of this silo counts
    STALE_ROUND = "stale_round"  # that round is not open
    STALE_BASE = "stale_base"  # trained from another model than the round's
    LATE = "late"  # the deadline has passed


def explain(verdict: Verdict, submission: Submission) -> str:
    """Return why a submission with this verdict does not count, for people."""
    reasons = {
        Verdict.REUSED_ID: "this update id was used for another update, which counts",
        Verdict.ALREADY_ANSWERED: "another update of this silo counts in this round",
        Verdict.STALE_BASE: "the update was trained from another model than this round's",
        Verdict.LATE: "the round's deadline has passed",
    }
    return reasons.get(verdict, f"round {submission.round} is not open")


class Decision(enum.Enum):
    COLLECT = "collect"
    CLOSE = "close"
    ABANDON = "abandon"


@dataclass(frozen=True)
class RoundStatus:
    """Answer to a silo that asks for work; the service adds when to ask again."""

    phase: Phase
    round: int
    deadline_s: float  # until the open round's deadline
    counted: int = 0  # the last closed round in which the silo's update counts, 0 for none


def start_run(policy: RoundPolicy, model_sha256: str, cohort: Cohort) -> RunState:
    """Return a new run with its first round open."""
    return RunState(policy=policy, closed=0, model_sha256=model_sha256, last_round=0, open=OpenRound(1, cohort))


def resumed(state: RunState, now: float) -> RunState:
    """Return ``state``, read from disk after a stop; the deadline of a round that has reports runs from now."""
    if state.open is not None and state.open.accepted:
        return replace(state, open=_running(state, state.open, now))
    return state


def status_for(state: RunState, silo: str, answered_round: int, now: float) -> RoundStatus:
    """Return the status for ``silo``, which has answered or declined every round up to ``answered_round``."""
    current = state.open
    if current is None:
        return RoundStatus(Phase.FINISHED, state.last_round, 0.0)
    whole = state.policy.deadline_s
    left = whole if current.deadline is None else min(max(current.deadline - now, 0.0), whole)
    if silo in current.accepted or answered_round >= current.number or left == 0.0:
        return RoundStatus(Phase.WAIT, state.last_round, 0.0)
    return RoundStatus(Phase.OPEN, current.number, left, state.counted.get(silo, 0))


def on_contact(state: RunState, silo: str, answered_round: int, now: float) -> RunState:
    """Handle a silo that asks for work: it gets the open round (whose deadline runs from then), or declines it."""
    current = state.open
    if current is None or silo in current.accepted:
        return state
    if answered_round >= current.number:
        return replace(state, open=replace(current, declined=current.declined | {silo}))
    asked = replace(current, declined=current.declined - {silo})
    return replace(state, open=_running(state, asked, now))


def on_leave(state: RunState, silos: frozenset[str]) -> RunState:
    """Stop waiting for these silos; updates that they have sent stay."""
    current = state.open
    if current is None or not silos - current.declined - current.accepted.keys():
        return state
    return replace(state, open=replace(current, declined=current.declined | (silos - current.accepted.keys())))


def on_update(
    state: RunState, submission: Submission, known: UpdateSummary | None, now: float
) -> tuple[RunState, Verdict]:
    """Decide about a submission whose content has passed its checks.

    ``known``: the report of the same silo in the same round that counts already; that round need not be open.
    Only ACCEPTED changes the state.
    """
    current, summary = state.open, submission.summary
    if known is not None and known.update_id == summary.update_id:
        return state, Verdict.DUPLICATE if known.digest == summary.digest else Verdict.REUSED_ID
    if current is None or submission.round != current.number:
        return state, Verdict.STALE_ROUND
    if known is not None or summary.silo in current.accepted:
        return state, Verdict.ALREADY_ANSWERED
    if submission.base_sha256 != state.model_sha256:
        return state, Verdict.STALE_BASE
    if current.deadline is not None and now >= current.deadline:
        return state, Verdict.LATE
    accepted = MappingProxyType({**current.accepted, summary.silo: summary})
    updated = replace(current, accepted=accepted, declined=current.declined - {summary.silo})
    return replace(state, open=_running(state, updated, now)), Verdict.ACCEPTED


def on_tick(state: RunState, now: float) -> Decision:
    """Decide if the open round ends now."""
    current = state.open
    if current is None:
        return Decision.COLLECT
    reported = len(current.accepted)
    if reported >= max(state.policy.min_silos, current.enough):
        return Decision.CLOSE
    if current.deadline is None or now < current.deadline:
        return Decision.COLLECT
    return Decision.CLOSE if reported >= state.policy.min_silos else Decision.ABANDON


def after_close(state: RunState, model_sha256: str, cohort: Cohort) -> RunState:
    """Return the state after the open round made a model: the next round opens from it, or the run is finished."""
    current, closed = _open(state), state.closed + 1
    number = current.number
    counted = MappingProxyType({**state.counted, **dict.fromkeys(current.accepted, number)})
    following = OpenRound(number + 1, cohort) if closed < state.policy.rounds else None
    return replace(state, closed=closed, model_sha256=model_sha256, last_round=number, open=following, counted=counted)


def after_abandon(state: RunState, cohort: Cohort) -> RunState:
    """Return the state after the open round was abandoned: the next one opens from the same model."""
    number = _open(state).number
    return replace(state, last_round=number, open=OpenRound(number + 1, cohort))


def _open(state: RunState) -> OpenRound:
    if state.open is None:
        raise InvariantError("a round was ended in a run that is finished")
    return state.open


def _running(state: RunState, current: OpenRound, now: float) -> OpenRound:
    return current if current.deadline is not None else replace(current, deadline=now + state.policy.deadline_s)
