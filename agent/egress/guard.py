"""The gate: what may leave this silo is decided by its policy, and written down before it goes.

Every update passes here: kept as a file, entered in the egress ledger, sent. So an update identifier never stands for
two different updates: after a restart the same bytes go out again, or, when the policy has changed meanwhile, none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from ...base.errors import DataError, InvariantError
from ...base.files import sha256_bytes
from ...base.log import Log
from ...fedproto.head import HeadSpec
from ...fedproto.messages import EvaluationReport, UpdateHeader
from ...fedproto.records import Evaluation, GlobalModel, RunSettings, Update
from ...fedproto.tls import read_file
from ..client import ConnectionSettings, EgressHooks
from .accountant import Spend, epsilon_of
from .ledger import Entry, Ledger, TensorSent, What
from .pending_update import Outgoing, read_outgoing, write_outgoing
from .policy import FLOOR, Policy, PolicyRefused

DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8", "sparse_int8": "sparse int8"}

log = Log("agent")


class EgressGuard:
    """One state folder's; used by the daemon alone."""

    def __init__(self, state: Path, policy: Policy, silo: str, ledger: Ledger) -> None:
        self.policy = policy
        self._state = state
        self.silo = silo
        self._ledger = ledger
        self._next: tuple[RunSettings, Outgoing] | None = None

    @classmethod
    def open(cls, state: Path, policy: Policy, silo: str, link: ConnectionSettings) -> EgressGuard:
        """Enters in the ledger what is new: the policy in force, and the certificate that the coordinator will see.

        Raises DataError (``ledger_broken``), StorageError.
        """
        gate = cls(state, policy, silo, Ledger.open(state))
        gate.shows_certificate(link)
        told = {key: value for key, value in msgspec.to_builtins(policy).items() if value is not None}
        last = max(gate._ledger.reading.of("policy"), key=lambda entry: entry.n, default=None)
        if last is None or (last.policy, last.overrides) != (told, policy.overrides()):
            gate._ledger.append("policy", policy=told, overrides=policy.overrides())
        for override in policy.overrides():
            log.warning("policy_override", what=override)
        return gate

    def shows_certificate(self, link: ConnectionSettings) -> None:
        """Call before a handshake shows a certificate, with this silo's name and public key: it is entered once."""
        shown = read_file(link.certificate)
        sha256 = sha256_bytes(shown)
        if all(entry.sha256 != sha256 for entry in self._ledger.reading.of("enrolment")):
            detail = f"certificate of silo '{self.silo}', shown to {link.address}: name and public key"
            self._ledger.append("enrolment", sha256=sha256, bytes=len(shown), detail=detail)

    @property
    def spends(self) -> tuple[Spend, ...]:
        """Of everything with record-dp that ever left."""
        return tuple(self._ledger.reading.spends().values())

    @property
    def epsilon(self) -> float | None:
        """Spent so far; None without record-dp."""
        budget = self.policy.budget
        return None if budget is None else epsilon_of(self.spends, budget[1])

    def update_id(self, run: RunSettings, model: GlobalModel) -> str:
        """The same round trained again after a crash has the same one, so it is counted once."""
        text = f"{run.sha256}/{model.round}/{model.sha256}/{self.silo}".encode()
        return hashlib.sha256(text).hexdigest()[:32]

    def resume(self, run: RunSettings, model: GlobalModel) -> Update | None:
        """The update of this round that a restart interrupted; None: there is none, train.

        Raises PolicyRefused (``withdrawn``) when one may have been sent already, and cannot be sent again as it was:
        the policy is another one now, or its noise is gone. Without noise, training again comes to the same (which
        ``leaving`` looks at): that is for a coordinator that went back to a backup.
        """
        update_id = self.update_id(run, model)
        try:
            kept = read_outgoing(self._state, run.head)
        except DataError as damaged:
            log.warning("outgoing_lost", code=damaged.code)
            kept = None
        wanted = run.sha256, self.policy.sha256, update_id
        if kept is not None and (kept.run_sha256, kept.policy_sha256, kept.update.update_id) == wanted:
            self._next = run, kept
            return kept.update
        before = self._entries(update_id)
        again = self.policy.privacy == "off" and {entry.policy_sha256 for entry in before} == {self.policy.sha256}
        if before and not again:
            raise PolicyRefused(
                f"an update of round {model.round} may have been sent before, and cannot be sent again as it was (the "
                "policy changed, or its file is gone): it is withdrawn, and no other one is sent in this round",
                reason="withdrawn",
            )
        return None

    def keep(self, run: RunSettings, update: Update, clips: int, spend: Spend | None) -> Update:
        """Make the update the one that may leave next; durable when it returns."""
        outgoing = Outgoing(run.sha256, self.policy.sha256, clips, spend, update)
        write_outgoing(self._state, run.head, outgoing)
        self._next = run, outgoing
        return update

    @property
    def leaving(self) -> EgressHooks:
        """What the link has to ask."""
        return EgressHooks(self._update_leaves, self._evaluation_leaves, self.shows_certificate)

    def _update_leaves(self, header: UpdateHeader, message: bytes) -> None:
        """The update's entry; ``message`` is the header's. Durable when it returns.

        Raises InvariantError for anything that was not kept here, StorageError when the ledger cannot be written,
        PolicyRefused when the same identifier left with other content.
        """
        if self._next is None or self._next[1].update.update_id != header.update_id:
            raise InvariantError(f"an update of round {header.round} is about to leave that the policy has not seen")
        run, outgoing = self._next
        known = self._entries(header.update_id)
        if any(
            (entry.sha256, entry.header_sha256) != (header.payload_sha256, sha256_bytes(message)) for entry in known
        ):
            raise PolicyRefused("an update with this identifier left before with other content", reason="withdrawn")
        self._ledger.append(
            "update",
            run=run.run,
            round=header.round,
            update_id=header.update_id,
            examples=header.examples,
            tensors=_tensors(run.head, DTYPES[header.codec]),
            codec=header.codec,
            bytes=len(message) + header.payload_bytes,
            sha256=header.payload_sha256,
            header_sha256=sha256_bytes(message),
            reported=_reported(header.evaluation),
            shared=header.shared,
            policy_sha256=outgoing.policy_sha256,
            privacy=outgoing.spend,
            overrides=self.policy.overridden(outgoing.clips, evaluation=header.evaluation is not None),
        )

    def _evaluation_leaves(self, report: EvaluationReport, message: bytes) -> None:
        """The entry of an evaluation at the end of a run. Raises StorageError."""
        first = report.results[0].evaluation if report.results else None
        self._ledger.append(
            "evaluation",
            round=report.round,
            bytes=len(message),
            sha256=sha256_bytes(message),
            models=len(report.results),
            reported=_reported(first),
            overrides=self.policy.overridden(FLOOR, evaluation=first is not None),
        )

    def refuse(self, run: RunSettings, model: GlobalModel, refused: PolicyRefused) -> None:
        """Enter a refusal; once, however often the round is asked for."""
        what: What = "withdrawn" if refused.reason == "withdrawn" else "refused"
        told: dict[str, Any] = {"run": run.run, "round": model.round, "update_id": self.update_id(run, model)}
        told |= {"code": refused.reason, "detail": refused.message}
        if not any(
            (entry.update_id, entry.code) == (told["update_id"], told["code"])
            for entry in self._ledger.reading.of(what)
        ):
            self._ledger.append(what, **told)

    def _entries(self, update_id: str) -> list[Entry]:
        return [entry for entry in self._ledger.reading.of("update") if entry.update_id == update_id]


def _tensors(head: HeadSpec, dtype: str) -> tuple[TensorSent, ...]:
    return tuple(TensorSent(name, shape, dtype) for name, shape in head.shapes.items())


def _reported(told: Evaluation | None) -> dict[str, float]:
    if told is None:
        return {}
    numbers: dict[str, float] = {"loss": told.loss, "correct": told.correct, "count": told.count}
    return numbers | ({"classes": len(told.by_class)} if told.by_class else {})
