"""The egress guard: everything that leaves a silo goes through it.

Every update goes through :meth:`EgressGuard.send`: checked against the policy, kept as a file, entered in the egress
ledger, and only then sent; every evaluation at the end of a run through :meth:`EgressGuard.send_evaluation`, and
every number for a calibration through :meth:`EgressGuard.send_calibration`. So an
update identifier never refers to two different updates: after a restart the same bytes are sent again, or, when the
policy has changed meanwhile, none. What leaves in a day is bounded (``quotas``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from ...base.errors import DataError, InvariantError
from ...base.files import sha256_bytes
from ...base.log import LimitedLog, Log
from ...fedproto.calibration_counts import CountedClips
from ...fedproto.head import HeadSpec
from ...fedproto.records import Evaluation, GlobalModel, Receipt, RunSettings, SubjectEvaluation, TaskStatus
from ...fedproto.tls import read_file
from ..client import CoordinatorClient
from ..handshake import ConnectionSettings
from .accountant import Spend, epsilon_of
from .calibration_limits import CalibrationPlan, plan_calibration
from .entry import Entry, EntryType, ReportedCounts, ReportedResult, TensorSent
from .evaluation_limits import EvaluationPlan, evaluations_left, is_planned, plan_evaluation, split_of, withheld_reason
from .ledger import Ledger
from .messages import CalibrationMessage, EvaluationMessage, UpdateMessage
from .pending_update import PendingUpdate, read_pending, write_pending
from .policy import MIN_SAMPLES_FLOOR, Policy, PolicyRefused
from .reported_calibration import require_countable
from .reported_evaluation import require_reportable

DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8", "sparse_int8": "sparse int8"}

log = Log("agent")
asked_log = LimitedLog("agent")  # for events that a coordinator can cause without end


class EgressGuard:
    """One silo's policy and egress ledger; used by the daemon alone."""

    def __init__(self, state: Path, policy: Policy, silo: str, ledger: Ledger) -> None:
        self.policy = policy
        self.silo = silo
        self._state = state
        self._ledger = ledger

    @classmethod
    def open(cls, state: Path, policy: Policy, silo: str, connection: ConnectionSettings) -> EgressGuard:
        """Open the ledger, and enter the policy and the certificate where they are new.

        Raises DataError (``ledger_broken``), StorageError.
        """
        guard = cls(state, policy, silo, Ledger.open(state))
        guard.record_certificate(connection)
        keys = {key: value for key, value in msgspec.to_builtins(policy).items() if value is not None}
        last = max(guard._ledger.content.of("policy"), key=lambda entry: entry.n, default=None)
        if last is None or (last.policy, last.overrides) != (keys, policy.overrides()):
            guard._ledger.append("policy", policy=keys, overrides=policy.overrides())
        for override in policy.overrides():
            log.warning("policy_override", what=override)
        return guard

    @classmethod
    def enter_certificate(cls, state: Path, policy: Policy, silo: str, connection: ConnectionSettings) -> None:
        """Enter the certificate where it is new, and nothing else: before a handshake that only tries the connection.

        Raises DataError (``ledger_broken``), StorageError.
        """
        cls(state, policy, silo, Ledger.open(state)).record_certificate(connection)

    @property
    def spends(self) -> tuple[Spend, ...]:
        """Privacy spent by all updates with record-dp that ever left."""
        return tuple(self._ledger.content.spends().values())

    @property
    def epsilon(self) -> float | None:
        """Privacy loss so far; None without record-dp."""
        budget = self.policy.budget
        return None if budget is None else epsilon_of(self.spends, budget[1])

    @property
    def evaluations_left(self) -> int:
        """Models whose evaluation may still leave now, of a day's and of a month's the smaller rest."""
        return max(0, evaluations_left(self.policy, self._ledger))

    @property
    def updates(self) -> int:
        """Number of updates in the ledger, of all runs."""
        return sum(1 for _ in self._ledger.content.of("update"))

    @property
    def update_bytes(self) -> int:
        """Bytes of the updates in the ledger, as ``Entry.bytes``."""
        return sum(entry.bytes for entry in self._ledger.content.of("update"))

    def last_round(self, run: RunSettings) -> int:
        """Return the last round of a run for which the ledger has an update; 0 for none."""
        rounds = (entry.round for entry in self._ledger.content.of("update") if entry.run_sha256 == run.sha256)
        return max(rounds, default=0)

    @property
    def pause_s(self) -> float:
        """Seconds to wait after a message, so that the ledger's quotas last."""
        return self._ledger.content.quotas.pause_s(self._ledger.now())

    def update_id(self, run: RunSettings, round_number: int, model_sha256: str) -> str:
        """Return the identifier of this silo's update of a round, trained from the model with this hash.

        A round that is trained again after a crash has the same one, so the coordinator counts it once.
        """
        text = f"{run.sha256}/{round_number}/{model_sha256}/{self.silo}".encode()
        return hashlib.sha256(text).hexdigest()[:32]

    def pending(self, run: RunSettings, model: GlobalModel) -> PendingUpdate | None:
        """Return this round's update that a restart interrupted, to be sent again; None: there is none, train.

        Raises PolicyRefused (``withdrawn``) when an update may have been sent already and cannot be sent again as it
        was: the policy has changed, or its noise cannot be drawn again. Without noise, training again gives the same
        bytes (``send`` checks this): that is for a coordinator that was restored from a backup. Raises PolicyRefused
        (``too_many_messages``) before anything is trained that could not be sent.
        """
        self._ledger.require_room()
        update_id = self.update_id(run, model.round, model.sha256)
        try:
            pending = read_pending(self._state, run.head)
        except DataError as damaged:
            log.warning("pending_update_lost", code=damaged.code)
            pending = None
        wanted = run.sha256, self.policy.sha256, update_id
        if pending is not None and (pending.run_sha256, pending.policy_sha256, pending.update.update_id) == wanted:
            return pending
        earlier = self._entries(update_id)
        repeatable = self.policy.privacy == "off" and {entry.policy_sha256 for entry in earlier} == {self.policy.sha256}
        if earlier and not repeatable:
            raise PolicyRefused(
                f"an update of round {model.round} may have been sent before, and cannot be sent again as it was (the "
                "policy changed, or its file is gone): it is withdrawn, and no other one is sent in this round",
                reason="withdrawn",
            )
        return None

    def send(self, client: CoordinatorClient, run: RunSettings, pending: PendingUpdate) -> Receipt:
        """Check the update against the policy, keep it as a file, enter it in the ledger, then send it.

        Each step is durable before the next one. Returns when the coordinator holds the update durably. Sending the
        same update again, as ``pending`` returns it after a crash, sends the same bytes under a further ledger entry;
        the retries of one call share its entry.

        Raises InvariantError for an update that was made for another round, run or policy, PolicyRefused for one that
        the policy forbids or whose identifier left before with other content, StorageError when file or ledger cannot
        be written, and what ``client.send_update`` raises.
        """
        expected = run.sha256, self.policy.sha256, self.update_id(run, pending.update.round, pending.update.base_sha256)
        if (pending.run_sha256, pending.policy_sha256, pending.update.update_id) != expected:
            raise InvariantError(
                f"the update of round {pending.update.round} was not made for this run under this policy"
            )
        self.policy.require_samples(pending.clips)
        self._ledger.require_room()
        pending, withheld = self._within_quotas(run, pending)
        write_pending(self._state, run.head, pending)
        message = UpdateMessage.of(run, pending.update)
        content = message.header.payload_sha256, sha256_bytes(message.encoded_header)
        if any((entry.sha256, entry.header_sha256) != content for entry in self._entries(pending.update.update_id)):
            raise PolicyRefused("an update with this identifier left before with other content", reason="withdrawn")
        self._record_update(run, pending, message, withheld)
        return client.send_update(message)

    def plan_evaluation(self, run: RunSettings, task: TaskStatus) -> EvaluationPlan:
        """Decide what is answered to a coordinator that asks for an evaluation at the end of a run.

        Raises PolicyRefused when nothing is.
        """
        return plan_evaluation(run, task, self.policy, self._ledger)

    def send_evaluation(
        self, client: CoordinatorClient, run: RunSettings, task: TaskStatus, results: Sequence[SubjectEvaluation]
    ) -> None:
        """Enter an evaluation at the end of a run in the ledger, then send it; no results: this silo declines.

        Raises PolicyRefused when it may not leave, InvariantError when it is not what was planned or what the policy
        reports, StorageError when the ledger cannot be written, and what ``client.send_evaluation`` raises.
        """
        plan = self.plan_evaluation(run, task)
        if not is_planned(results, plan):
            raise InvariantError(f"the evaluation after round {task.round} is not the one that this silo may send")
        for result in results if plan.sent is None else ():  # a policy changed since cannot take back what left
            require_reportable(result.evaluation, self.policy, run.head.outputs)
        message = EvaluationMessage.of(run, task.round, results)
        first = results[0].evaluation if results else None
        self._ledger.append(
            "evaluation",
            run=run.run,
            run_sha256=run.sha256,
            split=split_of(run),
            round=task.round,
            model_sha256=task.model_sha256,
            bytes=len(message.encoded),
            sha256=sha256_bytes(message.encoded),
            models=len(results),
            reported=_reported(first),
            results=tuple(ReportedResult.of(one.evaluation, one.subject) for one in results),
            overrides=self.policy.overridden(MIN_SAMPLES_FLOOR, evaluation=first is not None, update=False),
        )
        client.send_evaluation(message)

    def plan_calibration(self, run: RunSettings, task: TaskStatus) -> CalibrationPlan:
        """Decide what is answered to a coordinator that asks for numbers for a calibration.

        Raises PolicyRefused when nothing is.
        """
        return plan_calibration(run, task, self.policy, self._ledger)

    def send_calibration(
        self, client: CoordinatorClient, run: RunSettings, task: TaskStatus, found: CountedClips | None
    ) -> None:
        """Enter the numbers for a step of a calibration in the ledger, then send them; None: this silo declines.

        Raises PolicyRefused when they may not leave, InvariantError when they are not what was planned or what the
        policy reports, StorageError when the ledger cannot be written, and what ``client.send_calibration`` raises.
        """
        plan = self.plan_calibration(run, task)
        if found != plan.sent if plan.sent_before else plan.declined and found is not None:
            raise InvariantError(f"the numbers after round {task.round} are not those that this silo may send")
        if found is not None and not plan.sent_before:
            require_countable(found, self.policy)
        message = CalibrationMessage.of(run, task, found)
        self._ledger.append(
            "calibration",
            run=run.run,
            run_sha256=run.sha256,
            split=split_of(run),
            round=task.round,
            model_sha256=task.model_sha256,
            bytes=len(message.encoded),
            sha256=sha256_bytes(message.encoded),
            counted=ReportedCounts.of(message.report),
            overrides=self.policy.overridden(MIN_SAMPLES_FLOOR, evaluation=found is not None),
        )
        client.send_calibration(message)

    def record_certificate(self, connection: ConnectionSettings) -> None:
        """Enter a certificate, once, before a handshake shows it: it holds this silo's name and public key."""
        certificate = read_file(connection.certificate)
        sha256 = sha256_bytes(certificate)
        if all(entry.sha256 != sha256 for entry in self._ledger.content.of("enrolment")):
            detail = f"certificate of silo '{self.silo}', shown to {connection.address}: name and public key"
            self._ledger.append("enrolment", sha256=sha256, bytes=len(certificate), detail=detail)

    def record_refusal(self, run: RunSettings, model: GlobalModel, refused: PolicyRefused) -> None:
        """Enter the refusal of an update; once, however often the round is asked for."""
        what: EntryType = "withdrawn" if refused.reason == "withdrawn" else "refused"
        update_id = self.update_id(run, model.round, model.sha256)
        fields = {"run": run.run, "round": model.round, "update_id": update_id, "detail": refused.message}
        self._ledger.refuse(what, update_id, refused.reason, **fields)

    def record_refused_evaluation(self, run: RunSettings, task: TaskStatus, refused: PolicyRefused) -> bool:
        """Enter that an evaluation or a calibration was refused, once for each run; False: nothing was entered."""
        fields = {"run": run.run, "run_sha256": run.sha256, "round": task.round, "detail": refused.message}
        return self._ledger.refuse("refused", run.sha256, refused.reason, **fields)

    def _within_quotas(self, run: RunSettings, pending: PendingUpdate) -> tuple[PendingUpdate, str]:
        """Return the update as it may leave, without its evaluation when too many have left, and the reason."""
        evaluation = pending.update.evaluation
        if evaluation is None:
            return pending, ""
        require_reportable(evaluation, self.policy, run.head.outputs)
        if earlier := self._entries(pending.update.update_id):  # the same again, or it is withdrawn
            withheld = earlier[0].withheld
        else:
            withheld = withheld_reason(run, self.policy, self._ledger)
        if not withheld:
            return pending, ""
        asked_log.warning("evaluation_withheld", who=withheld, round=pending.update.round, reason=withheld)
        return replace(pending, update=replace(pending.update, evaluation=None)), withheld

    def _record_update(self, run: RunSettings, pending: PendingUpdate, message: UpdateMessage, withheld: str) -> None:
        header = message.header
        self._ledger.append(
            "update",
            run=run.run,
            run_sha256=run.sha256,
            split=split_of(run),
            round=header.round,
            update_id=header.update_id,
            examples=header.examples,
            tensors=_tensors(run.head, DTYPES[header.codec]),
            codec=header.codec,
            bytes=message.size,
            sha256=header.payload_sha256,
            header_sha256=sha256_bytes(message.encoded_header),
            reported=_reported(header.evaluation),
            results=() if header.evaluation is None else (ReportedResult.of(header.evaluation),),
            withheld=withheld,
            shared=header.shared,
            policy_sha256=pending.policy_sha256,
            privacy=pending.spend,
            overrides=self.policy.overridden(pending.clips, evaluation=header.evaluation is not None),
        )

    def _entries(self, update_id: str) -> list[Entry]:
        return self._ledger.content.updates(update_id)


def _tensors(head: HeadSpec, dtype: str) -> tuple[TensorSent, ...]:
    return tuple(TensorSent(name, shape, dtype) for name, shape in head.shapes.items())


def _reported(evaluation: Evaluation | None) -> dict[str, float]:
    if evaluation is None:
        return {}
    figures: dict[str, float] = {"loss": evaluation.loss, "correct": evaluation.correct, "count": evaluation.count}
    return figures | ({"classes": len(evaluation.by_class)} if evaluation.by_class else {})
