"""The daemon's loop: extract what is new, ask for work, train, send, ask again.

The heavy work runs in the worker process; this one only waits, talks and keeps the status.
"""

from __future__ import annotations

import os
import random
import time
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
from .egress.guard import EgressGuard
from .egress.policy import PolicyRefused
from .extraction.records import ExtractRequest
from .final_model import Finals
from .identity import Renewal, agent_instance
from .settings import AgentSettings
from .status import LOCK_FILE, AgentStatus, Doing, write_status
from .tasks import DataSource, RoundOutcome, RoundWork, extract_new, train_round
from .worker import Worker, WorkerCrashed, WorkStopped

DUPLICATE_S = 60.0  # how often an agent asks whether the other one of its identity is gone
POLL_S = 20.0  # how long the coordinator may keep a question for work open
RETRY_S = (1.0, 60.0)  # pause after an unreachable coordinator: doubles from the first to the second
DECLINED: tuple[Doing, ...] = ("refused_by_policy", "failed")

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
                daemon.give_up(error)
                raise


class _Daemon:
    def __init__(self, settings: AgentSettings, silo: str, shutdown: Shutdown, worker: Worker) -> None:
        self._settings = settings
        self._silo = silo
        self._shutdown = shutdown
        self._worker = worker
        self._scanned = -settings.work.rescan_s
        self._instance = agent_instance(settings.state)
        self._source = DataSource(settings.store, settings.precision, settings.policy.hold_out, settings.work.threads)
        self._finals = Finals(settings.state, settings.policy, worker, self._source)
        self._status = AgentStatus(pid=os.getpid(), silo=silo, since=utc_text())
        write_status(settings.state, self._status)

    def serve(self, *, once: bool) -> AgentStatus:
        log.info("starting", silo=self._silo, coordinator=self._settings.coordinator.address)
        self._gate = EgressGuard.open(
            self._settings.state, self._settings.policy, self._silo, self._settings.coordinator
        )
        self._note_budget()
        with CoordinatorClient.open(
            self._settings.coordinator, shutdown=self._shutdown, leaving=self._gate.leaving
        ) as link:
            self._renewal = Renewal(link, self._settings.coordinator.files)
            self._note_certificate()
            return self._serve_runs(link, once=once)

    def _serve_runs(self, link: CoordinatorClient, *, once: bool) -> AgentStatus:
        """One run after the other, over whatever happens to the line."""
        pause = RETRY_S[0]
        while not self._shutdown.requested:
            try:
                self._renew_if_due()
                run = link.join()
                pause = RETRY_S[0]
                if self._serve_run(link, run, once=once):
                    return self._status
            except (WorkStopped, ClientStopped):
                break
            except RunChanged as change:
                log.info("run_changed", detail=change.message)
            except DuplicateIdentity as error:
                self._become("duplicate_identity", detail=f"{error.message}; {error.fix}")
                log.error("duplicate_identity", detail=error.message, fix=error.fix)
                self._shutdown.wait(DUPLICATE_S * random.uniform(0.8, 1.2))
            except IdentityError:
                if not self._renew_if_due():  # otherwise: refused with a certificate that was renewed meanwhile
                    raise
            except UnreachableError as error:
                link.redial()
                self._become("unreachable", detail=error.message)
                log.warning("unreachable", retry_s=pause, detail=error.message)
                self._shutdown.wait(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, RETRY_S[1])
        self._become("stopped")
        return self._status

    def give_up(self, error: FlamestError) -> None:
        """Leave in the status why the daemon ended."""
        self._become("stopped", detail=error.message, code=error.code)

    def _serve_run(self, link: CoordinatorClient, run: RunSettings, *, once: bool) -> bool:
        """From joining to what ends it; True when the run has finished and ``once`` asks to end then."""
        self._extract_if_due()
        log.info("joined", run=run.run, rounds=run.rounds, settings=run.sha256[:12])
        self._note(run=run.run, rounds=run.rounds)
        answered = losses = 0
        saved = measured = ""  # hashes of the final model
        while not self._shutdown.requested:
            if losses != link.losses:  # it was away, and may have come back from an older backup
                answered, losses = 0, link.losses
            self._renew_if_due()
            standing = link.wait(run, answered, POLL_S, instance=self._instance)
            self._count(link)
            if standing.phase is Phase.EVALUATE and measured != standing.model_sha256:
                self._become("evaluating")
                self._finals.measure(link, run, standing)
                self._count(link)
                measured = standing.model_sha256
                continue
            if standing.phase is Phase.OPEN:
                self._answer(link, run, standing)
                answered = standing.round
                continue
            if standing.phase in (Phase.FINISHED, Phase.EVALUATE):  # asked again: its report was refused
                if saved != standing.model_sha256:
                    kept = self._finals.keep(link, run, standing)
                    self._count(link)
                    self._note(adopted=kept.model, adopted_why=kept.why)
                    saved = standing.model_sha256
                self._become("finished")
                if once:
                    return True
            elif self._status.doing not in DECLINED:  # why nothing was sent stays to be read until the next round
                self._become("waiting")
            self._worker.rest()
            self._shutdown.wait(standing.poll_after_s)
            self._extract_if_due()
        return False

    def _renew_if_due(self) -> bool:
        """Take a renewed certificate into use; whether one was. Only the line changes, nothing of the run is lost."""
        renewed = self._renewal.look(asked=self._shutdown.take_reload())
        self._renewal.warn_daily()
        self._note_certificate()
        return renewed

    def _answer(self, link: CoordinatorClient, run: RunSettings, standing: TaskStatus) -> None:
        """Train on the round's model and send the update, unless this silo's policy forbids it."""
        self._become("training")
        try:
            model = link.fetch(run, standing)
            try:
                update = self._gate.resume(run, model) or self._made(run, model, standing)
                if update is not None:
                    self._submit(link, run, update)
            except PolicyRefused as refused:
                self._gate.refuse(run, model, refused)
                self._become("refused_by_policy", detail=refused.message, code=refused.code)
                log.warning(refused.code, round=model.round, reason=refused.reason, examples=refused.examples)
        except (RunChanged, DuplicateIdentity):
            raise
        except StaleUpdate as stale:
            log.warning("update_not_taken", round=standing.round, code=stale.code, detail=stale.message)
        except (DataError, StorageError) as error:  # refused by the coordinator, or no room for the ledger's line
            self._say_why("update_failed", standing.round, error)

    def _submit(self, link: CoordinatorClient, run: RunSettings, update: Update) -> None:
        receipt = link.submit(run, update)
        self._count(link)
        self._become("waiting")
        self._note(round=receipt.round, updates_sent=self._status.updates_sent + 1)
        self._note_budget()
        log.info("update_sent", round=receipt.round, examples=update.examples)

    def _made(self, run: RunSettings, model: GlobalModel, standing: TaskStatus) -> Update | None:
        """A new update, ready to leave; None when this silo's data cannot serve the round (said in the status)."""
        outcome = self._train(run, model, standing)
        if outcome is None:
            return None
        self._note(clips=outcome.examples, held_out=outcome.held_out, ignored=outcome.ignored)
        if outcome.refused is not None:
            raise outcome.refused
        log.info("trained", round=model.round, clips=outcome.examples, loss=outcome.loss)
        policy = self._settings.policy
        update = Update(
            round=model.round,
            base_sha256=model.sha256,
            update_id=self._gate.update_id(run, model),
            examples=policy.rounded_count(outcome.examples),
            params=outcome.params,
            encoded=outcome.encoded,
            evaluation=outcome.evaluation,
            shared=run.final_evaluation == "sites" and policy.share_for_evaluation,
        )
        return self._gate.keep(run, update, outcome.examples, outcome.spend)

    def _train(self, run: RunSettings, model: GlobalModel, standing: TaskStatus) -> RoundOutcome | None:
        """The round's outcome; None when this silo's data cannot serve it (said in the status)."""
        settings, policy = self._settings, self._settings.policy
        work = RoundWork(
            run=run,
            silo=self._silo,
            model=model,
            counted_round=standing.counted_round,
            state=settings.state,
            policy=policy,
            spends=self._gate.spends,
            codec=more_exact(run.codec, policy.codec or run.codec),
            own=self._finals.own_model if policy.refuse_worse else None,
        )
        try:
            return self._worker.call(train_round, self._source, work)
        except (DataError, StorageError, WorkerCrashed) as error:
            self._say_why("training_failed", model.round, error)
            return None

    def _extract_if_due(self) -> None:
        """Look through the video folder when it is time; a failure is logged and never ends the daemon."""
        settings = self._settings
        if settings.videos is None or settings.bundle is None:
            return
        if time.monotonic() - self._scanned < settings.work.rescan_s:
            return
        self._become("extracting")
        try:
            request = ExtractRequest(
                settings.bundle,
                settings.videos,
                settings.store,
                threads=settings.work.threads,
                limits=DecodeLimits(timeout_s=settings.work.clip_timeout),
                trusted=settings.trust(),
                backend_options=settings.work.backend_options,
                trained_on=settings.precision,
            )
            extracted = self._worker.call(extract_new, request)
            log.info("extracted", **extracted.figures, **extracted.backends)
            if extracted.followed:
                precision = extracted.figures["precision"]
                log.warning("precision_of_the_store", precision=precision, settings="name none under [work]")
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

    def _say_why(self, event: str, round_number: int, error: FlamestError) -> None:
        """In the status whole; in the log without the message, which may name files of this silo."""
        said = " ".join((f"round {round_number}: {error.message}", error.fix)).strip()
        self._become("failed", detail=said, code=error.code)
        log.error(event, round=round_number, code=error.code, see="flamest-agent status")
        log.debug(event, detail=error.message)

    def _become(self, doing: Doing, *, detail: str = "", code: str = "") -> None:
        if (doing, detail) != (self._status.doing, self._status.detail):
            self._note(doing=doing, detail=detail, code=code, since=utc_text())

    def _note_budget(self) -> None:
        """What record-dp has spent, and of how much."""
        if (budget := self._settings.policy.budget) is not None:
            self._note(epsilon_spent=self._gate.epsilon, epsilon_budget=budget[0])

    def _note_certificate(self) -> None:
        self._note(certificate_expires=self._renewal.expires, certificate_problem=self._renewal.problem)

    def _count(self, link: CoordinatorClient) -> None:
        self._note(sent_bytes=link.sent_bytes, received_bytes=link.received_bytes)

    def _note(self, **changes: Any) -> None:
        changed = msgspec.structs.replace(self._status, **changes)
        if changed != self._status:
            self._status = changed
            write_status(self._settings.state, changed)
