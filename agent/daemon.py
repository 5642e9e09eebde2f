"""The daemon's loop: extract new clips, ask the coordinator for work, train, send, ask again.

The heavy work runs in the worker process; this one waits, communicates and keeps the status.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from ..base.clock import utc_text
from ..base.errors import DataError, FlamestError, IdentityError, StorageError, UnreachableError
from ..base.files import FileLock
from ..base.log import Log
from ..base.process import Shutdown
from ..fedproto.codecs import more_exact
from ..fedproto.records import GlobalModel, Phase, RunSettings, TaskStatus, Update
from ..runtime.video.decoder import DecodeLimits
from .client import ClientStopped, CoordinatorClient, DuplicateIdentity, RunChanged, StaleUpdate
from .egress.evaluation_noise import noise_secret
from .egress.guard import EgressGuard
from .egress.pending_update import PendingUpdate
from .egress.policy import PolicyRefused
from .end_of_run import OWN_MODEL, EndOfRun
from .extraction.report import ExtractRequest
from .identity import agent_instance
from .renewal import Renewal
from .settings import AgentSettings
from .status import LOCK_FILE, AgentStatus, DaemonState, write_status
from .tasks import DataSource, RoundOutcome, RoundWork, extract_new, train_round
from .worker import Worker, WorkerCrashed, WorkStopped

DUPLICATE_S = 60.0  # pause before an agent asks again whether the other one with its identity is gone
POLL_S = 20.0  # how long the coordinator may hold a request for work open
# Pause before the daemon connects again, after a call's own retries (retry.py) have given up: a longer outage, so it
# doubles from the first to the second, over as many calls as it takes.
RECONNECT_S = (1.0, 60.0)
NOT_SENT: tuple[DaemonState, ...] = ("refused_by_policy", "failed")

log = Log("agent")


def run_agent(settings: AgentSettings, silo: str, shutdown: Shutdown, *, once: bool) -> AgentStatus:
    """Serve runs until asked to stop; with ``once`` until the run has finished.

    Returns the last status. Raises LockedError when another agent holds the state folder,
    IdentityError when the coordinator refuses this silo (nothing to retry: a person must act).
    """
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock.take(settings.state / LOCK_FILE, owner="flamest-agent"):
        with Worker(shutdown, idle_s=settings.work.idle_s) as worker:
            daemon = _Daemon(settings, silo, shutdown, worker)
            try:
                return daemon.serve(once=once)
            except FlamestError as error:
                daemon.note_failure(error)
                raise


@dataclass
class _RunProgress:
    """The part of a run that this silo has done, and does not do again while the coordinator repeats its answer."""

    round: int = 0  # the last round that was answered, or will not be
    evaluated: str = ""  # hash of the final model whose evaluation was reported
    adopted: str = ""  # hash of the final model that was compared and put to use
    failed_attempts: int = 0  # of the client, when ``round`` was last known to be right

    def note_outage(self, failed_attempts: int) -> None:
        """Answer the open round again when the coordinator was away: it may be restored from a backup."""
        if failed_attempts != self.failed_attempts:
            self.round, self.failed_attempts = 0, failed_attempts


class _Daemon:
    def __init__(self, settings: AgentSettings, silo: str, shutdown: Shutdown, worker: Worker) -> None:
        self._settings = settings
        self._silo = silo
        self._shutdown = shutdown
        self._worker = worker
        self._scanned = -settings.work.rescan_s
        self._instance = agent_instance(settings.state)
        self._source = DataSource(
            settings.store,
            settings.precision,
            settings.policy.hold_out,
            settings.work.threads,
            noise_secret(settings.state),
        )
        self._status = AgentStatus(pid=os.getpid(), silo=silo, since=utc_text())
        write_status(settings.state, self._status)

    def serve(self, *, once: bool) -> AgentStatus:
        settings = self._settings
        log.info("starting", silo=self._silo, coordinator=settings.coordinator.address)
        self._guard = EgressGuard.open(settings.state, settings.policy, self._silo, settings.coordinator)
        self._end_of_run = EndOfRun(settings.state, self._guard, self._worker, self._source)
        self._note_budget()
        with CoordinatorClient.open(settings.coordinator, shutdown=self._shutdown) as client:
            self._renewal = Renewal(client, self._guard)
            self._note_certificate()
            return self._serve_runs(client, once=once)

    def _serve_runs(self, client: CoordinatorClient, *, once: bool) -> AgentStatus:
        """Serve one run after the other, and survive every loss of the connection."""
        pause = RECONNECT_S[0]
        while not self._shutdown.requested:
            try:
                self._renew_if_due()
                run = client.join()
                pause = RECONNECT_S[0]
                if self._serve_run(client, run, once=once):
                    return self._status
            except (WorkStopped, ClientStopped):
                break
            except RunChanged as change:
                log.info("run_changed", detail=change.message)
            except DuplicateIdentity as error:
                self._set_state("duplicate_identity", detail=f"{error.message}; {error.fix}")
                log.error("duplicate_identity", detail=error.message, fix=error.fix)
                self._shutdown.wait(DUPLICATE_S * random.uniform(0.8, 1.2))
            except IdentityError:
                if not self._renew_if_due():  # otherwise the refused certificate was replaced meanwhile
                    raise
            except UnreachableError as error:
                client.reconnect()
                self._set_state("unreachable", detail=error.message)
                log.warning("unreachable", retry_s=pause, detail=error.message)
                self._shutdown.wait(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, RECONNECT_S[1])
        self._set_state("stopped")
        return self._status

    def note_failure(self, error: FlamestError) -> None:
        """Leave the reason why the daemon ended in the status."""
        self._set_state("stopped", detail=error.message, code=error.code)

    def _serve_run(self, client: CoordinatorClient, run: RunSettings, *, once: bool) -> bool:
        """Serve a run from joining to its end; True when it has finished and ``once`` asks to end then."""
        self._extract_if_due()
        log.info("joined", run=run.run, rounds=run.rounds, settings=run.sha256[:12])
        self._note(run=run.run, rounds=run.rounds)
        done = _RunProgress()
        while not self._shutdown.requested:
            done.note_outage(client.failed_attempts)
            self._renew_if_due()
            task = client.wait(run, done.round, POLL_S, instance=self._instance)
            self._note_traffic(client)
            if task.phase is Phase.EVALUATE and done.evaluated != task.model_sha256:
                self._evaluate(client, run, task)
                done.evaluated = task.model_sha256
                continue
            if task.phase is Phase.OPEN:
                self._answer_round(client, run, task)
                done.round = task.round
                continue
            if task.phase in (Phase.FINISHED, Phase.EVALUATE):  # EVALUATE again: the report was refused
                if done.adopted != task.model_sha256:
                    self._adopt_model(client, run, task)
                    done.adopted = task.model_sha256
                self._set_state("finished")
                if once:
                    return True
            elif self._status.doing not in NOT_SENT:  # the reason why nothing was sent stays until the next round
                self._set_state("waiting")
            self._worker.rest()
            self._shutdown.wait(task.poll_after_s)
            self._extract_if_due()
        return False

    def _evaluate(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Report how the models that the coordinator offers do on the held-out clips."""
        self._set_state("evaluating")
        self._end_of_run.evaluate(client, run, task)
        self._note_traffic(client)
        self._note_budget()

    def _adopt_model(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Put the final model to use, or keep this silo's own where the policy finds that better."""
        in_use = self._end_of_run.adopt_model(client, run, task)
        self._note_traffic(client)
        self._note(adopted=in_use.model, adopted_why=in_use.why)

    def _renew_if_due(self) -> bool:
        """Use a renewed certificate, if there is one; True if so. The run continues over the new connection."""
        renewed = self._renewal.reload(requested=self._shutdown.take_reload())
        self._renewal.warn_daily()
        self._note_certificate()
        return renewed

    def _answer_round(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Train on the round's model and send the update, unless this silo's policy forbids it."""
        self._set_state("training")
        try:
            model = client.fetch(run, task)
            try:
                pending = self._guard.pending(run, model) or self._train(run, model, task)
                if pending is not None:
                    self._send(client, run, pending)
            except PolicyRefused as refused:
                self._guard.record_refusal(run, model, refused)
                self._set_state("refused_by_policy", detail=refused.message, code=refused.code)
                log.warning(refused.code, round=model.round, reason=refused.reason, examples=refused.examples)
        except (RunChanged, DuplicateIdentity):
            raise
        except StaleUpdate as stale:
            log.warning("update_stale", round=task.round, code=stale.code, detail=stale.message)
        except (DataError, StorageError) as error:  # refused by the coordinator, or the ledger cannot be written
            self._note_error("update_failed", task.round, error)

    def _send(self, client: CoordinatorClient, run: RunSettings, pending: PendingUpdate) -> None:
        receipt = self._guard.send(client, run, pending)
        self._note_traffic(client)
        self._set_state("waiting")
        self._note(round=receipt.round, updates_sent=self._status.updates_sent + 1)
        self._note_budget()
        log.info("update_sent", round=receipt.round, examples=pending.update.examples)

    def _train(self, run: RunSettings, model: GlobalModel, task: TaskStatus) -> PendingUpdate | None:
        """Train a new update; None when this silo's data cannot serve the round (the status has the reason).

        Raises PolicyRefused.
        """
        policy = self._settings.policy
        outcome = self._run_training(run, model, task)
        if outcome is None:
            return None
        self._note(clips=outcome.examples, held_out=outcome.held_out, ignored=outcome.ignored)
        if outcome.refused is not None:
            raise outcome.refused
        log.info("trained", round=model.round, clips=outcome.examples, loss=outcome.loss)
        update = Update(
            round=model.round,
            base_sha256=model.sha256,
            update_id=self._guard.update_id(run, model.round, model.sha256),
            examples=policy.rounded_count(outcome.examples),
            params=outcome.params,
            encoded=outcome.encoded,
            evaluation=outcome.evaluation,
            shared=run.final_evaluation == "sites" and policy.share_for_evaluation,
        )
        return PendingUpdate(run.sha256, policy.sha256, outcome.examples, outcome.spend, update)

    def _run_training(self, run: RunSettings, model: GlobalModel, task: TaskStatus) -> RoundOutcome | None:
        """Train in the worker process; None when it failed (the status has the reason)."""
        settings, policy = self._settings, self._settings.policy
        work = RoundWork(
            run=run,
            silo=self._silo,
            model=model,
            counted_round=task.counted_round,
            state=settings.state,
            policy=policy,
            spends=self._guard.spends,
            codec=more_exact(run.codec, policy.codec or run.codec),
            own=settings.state / OWN_MODEL if policy.refuse_worse else None,
        )
        try:
            return self._worker.call(train_round, self._source, work)
        except (DataError, StorageError, WorkerCrashed) as error:
            self._note_error("training_failed", model.round, error)
            return None

    def _extract_if_due(self) -> None:
        """Extract new clips of the video folder when it is time; a failure is logged and never ends the daemon."""
        settings = self._settings
        if settings.videos is None or settings.bundle is None:
            return
        if time.monotonic() - self._scanned < settings.work.rescan_s:
            return
        self._set_state("extracting")
        try:
            request = ExtractRequest(
                settings.bundle,
                settings.videos,
                settings.store,
                threads=settings.work.threads,
                limits=DecodeLimits(timeout_s=settings.work.clip_timeout),
                trusted=settings.trust(),
                backend_options=settings.work.backend_options,
                training_precision=settings.precision,
            )
            extracted = self._worker.call(extract_new, request)
            log.info("extracted", **extracted.figures, **extracted.backends)
            if extracted.used_stored_precision:
                precision = extracted.figures["precision"]
                log.warning("store_precision_used", precision=precision, fix="set precision under [work]")
            if extracted.failed:
                log.warning("clips_failed", **extracted.failed)
            backends = extracted.backends or self._status.backends
            self._note(backends=backends, extraction="", failed_clips=extracted.failed)
        except WorkStopped:
            raise
        except FlamestError as error:  # its message may name files: it goes to the status, not to the log
            self._note(extraction=" ".join((f"{error.code}: {error.message}", error.fix)).strip())
            log.error("extraction_failed", code=error.code, see="flamest-agent status")
            log.debug("extraction_failed", detail=error.message)
        self._scanned = time.monotonic()

    def _note_error(self, event: str, round_number: int, error: FlamestError) -> None:
        """Note an error in the status, and log it without its message, which may name files of this silo."""
        detail = " ".join((f"round {round_number}: {error.message}", error.fix)).strip()
        self._set_state("failed", detail=detail, code=error.code)
        log.error(event, round=round_number, code=error.code, see="flamest-agent status")
        log.debug(event, detail=error.message)

    def _set_state(self, doing: DaemonState, *, detail: str = "", code: str = "") -> None:
        if (doing, detail) != (self._status.doing, self._status.detail):
            self._note(doing=doing, detail=detail, code=code, since=utc_text())

    def _note_budget(self) -> None:
        """Note how many evaluations left and, with record-dp, how much of the privacy budget is spent."""
        self._note(evaluations=self._guard.evaluations, evaluations_per_day=self._settings.policy.evaluations_per_day)
        if (budget := self._settings.policy.budget) is not None:
            self._note(epsilon_spent=self._guard.epsilon, epsilon_budget=budget[0])

    def _note_certificate(self) -> None:
        self._note(certificate_expires=self._renewal.expires, certificate_problem=self._renewal.problem)

    def _note_traffic(self, client: CoordinatorClient) -> None:
        self._note(sent_bytes=client.sent_bytes, received_bytes=client.received_bytes)

    def _note(self, **changes: Any) -> None:
        changed = msgspec.structs.replace(self._status, **changes)
        if changed != self._status:
            self._status = changed
            write_status(self._settings.state, changed)
