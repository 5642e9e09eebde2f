"""The daemon's loop: extract what is new, ask for work, train, send, ask again.

The heavy work runs in the worker process; this one only waits, talks and keeps the status.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from typing import Any

import msgspec

from ..base.errors import DataError, FlamestError, StorageError, UnreachableError
from ..base.files import FileLock
from ..base.log import Log
from ..base.shutdown import Shutdown
from ..fedproto.codecs import more_exact
from ..fedproto.modelfile import ModelFile, read_model, write_model
from ..fedproto.records import GlobalModel, Phase, RunSettings, Standing, SubjectEvaluation, Update
from .corrections import Corrections
from .extract import ExtractRequest
from .instance import agent_instance
from .link import DuplicateIdentity, Link, LinkStopped, RunChanged, StaleUpdate
from .measure import Adoption
from .settings import AgentSettings
from .status import LOCK_FILE, AgentStatus, Doing, write_status
from .tasks import (
    DataSource,
    RoundOutcome,
    RoundWork,
    choose_model,
    extract_new,
    measure_model,
    train_round,
)
from .worker import Worker, WorkerCrashed, WorkStopped

DUPLICATE_S = 60.0  # how often an agent asks whether the other one of its identity is gone
POLL_S = 20.0  # how long the coordinator may keep a question for work open
RETRY_S = (1.0, 60.0)  # pause after an unreachable coordinator: doubles from the first to the second
FINAL_MODEL = "model.safetensors"  # in use at this site: the run's, or this silo's own where that was better
OWN_MODEL = "own.safetensors"  # what this silo trained last (policy.refuse_worse)
REFUSED_MODEL = "model.refused.safetensors"
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
        self._before = (0, 0)  # bytes sent and received over the connections before this one
        self._instance = agent_instance(settings.state)
        self._status = AgentStatus(pid=os.getpid(), silo=silo, since=_now())
        write_status(settings.state, self._status)

    def serve(self, *, once: bool) -> AgentStatus:
        log.info("starting", silo=self._silo, coordinator=self._settings.coordinator.address)
        pause = RETRY_S[0]
        while not self._shutdown.requested:
            try:
                with Link.open(self._settings.coordinator, shutdown=self._shutdown) as link:
                    self._before = (self._status.sent_bytes, self._status.received_bytes)
                    run = link.join()
                    pause = RETRY_S[0]
                    if self._serve_run(link, run, once=once):
                        return self._status
            except (WorkStopped, LinkStopped):
                break
            except RunChanged as change:
                log.info("run_changed", detail=change.message)
            except DuplicateIdentity as error:
                self._become("duplicate_identity", detail=f"{error.message}; {error.fix}")
                log.error("duplicate_identity", detail=error.message, fix=error.fix)
                self._shutdown.wait(DUPLICATE_S * random.uniform(0.8, 1.2))
            except UnreachableError as error:
                self._become("unreachable", detail=error.message)
                log.warning("unreachable", retry_s=pause, detail=error.message)
                self._shutdown.wait(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, RETRY_S[1])
        self._become("stopped")
        return self._status

    def give_up(self, error: FlamestError) -> None:
        """Leave in the status why the daemon ended."""
        self._become("stopped", detail=error.message)

    def _serve_run(self, link: Link, run: RunSettings, *, once: bool) -> bool:
        """One connection's life; True when the run has finished and ``once`` asks to end then."""
        self._extract_if_due()
        log.info("joined", run=run.run, rounds=run.rounds, settings=run.sha256[:12])
        self._note(run=run.run, rounds=run.rounds)
        answered = losses = 0
        saved = measured = ""  # hashes of the final model
        while not self._shutdown.requested:
            if losses != link.losses:  # it was away, and may have come back from an older backup
                answered, losses = 0, link.losses
            standing = link.wait(run, answered, POLL_S, instance=self._instance)
            self._count(link)
            if standing.phase is Phase.EVALUATE and measured != standing.model_sha256:
                self._measure(link, run, standing)
                measured = standing.model_sha256
                continue
            if standing.phase is Phase.OPEN:
                self._answer(link, run, standing)
                answered = standing.round
                continue
            if standing.phase in (Phase.FINISHED, Phase.EVALUATE):  # asked again: its report was refused
                if saved != standing.model_sha256:
                    self._keep_final_model(link, run, standing)
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

    def _answer(self, link: Link, run: RunSettings, standing: Standing) -> None:
        """Train on the round's model and send the update, unless this silo's policy forbids it."""
        self._become("training")
        try:
            model = link.fetch(run, standing)
            outcome = self._train(run, model, standing)
            if outcome is not None:
                self._submit(link, run, model, outcome)
        except RunChanged:
            raise
        except StaleUpdate as stale:
            log.warning("update_not_taken", round=standing.round, code=stale.code, detail=stale.message)
        except DataError as refused:  # by the coordinator; the next round is another try
            self._say_why("update_refused", standing.round, refused)

    def _submit(self, link: Link, run: RunSettings, model: GlobalModel, outcome: RoundOutcome) -> None:
        self._note(clips=outcome.examples, held_out=outcome.held_out, ignored=outcome.ignored)
        floor = self._settings.policy.min_samples
        if outcome.params is None and outcome.coded is None:
            self._become("refused_by_policy", detail=_too_few(outcome, floor))
            log.warning("refused_by_policy", round=model.round, examples=outcome.examples, min_samples=floor)
            return
        update = Update(
            round=model.round,
            base_sha256=model.sha256,
            update_id=_update_id(run, model, self._silo),
            examples=outcome.examples,
            params=outcome.params,
            coded=outcome.coded,
            evaluation=outcome.evaluation if self._settings.policy.report_evaluation else None,
            shared=run.final_evaluation == "sites" and self._settings.policy.share_for_evaluation,
        )
        receipt = link.submit(run, update)
        self._count(link)
        self._become("waiting")
        self._note(round=receipt.round, updates_sent=self._status.updates_sent + 1)
        log.info("update_sent", round=receipt.round, examples=update.examples, loss=outcome.loss)

    def _train(self, run: RunSettings, model: GlobalModel, standing: Standing) -> RoundOutcome | None:
        """The round's outcome; None when this silo's data cannot serve it (said in the status)."""
        settings, policy = self._settings, self._settings.policy
        work = RoundWork(
            run=run,
            silo=self._silo,
            model=model,
            counted_round=standing.counted_round,
            state=settings.state,
            min_samples=policy.min_samples,
            codec=more_exact(run.codec, policy.codec or run.codec),
            class_floor=policy.report_classes,
            own=settings.state / OWN_MODEL if policy.refuse_worse else None,
        )
        try:
            return self._worker.call(train_round, self._source, work)
        except (DataError, StorageError, WorkerCrashed) as error:
            self._say_why("training_failed", model.round, error)
            return None

    @property
    def _source(self) -> DataSource:
        settings = self._settings
        return DataSource(settings.store, settings.precision, settings.policy.hold_out, settings.work.threads)

    def _measure(self, link: Link, run: RunSettings, standing: Standing) -> None:
        """At the end of the run: tell how the models that it offers do on the held-out clips, or decline."""
        self._become("evaluating")
        results: list[SubjectEvaluation] = []
        policy = self._settings.policy
        try:
            for subject in range(standing.subjects if policy.report_evaluation else 0):
                params = link.fetch_subject(run, standing, subject)
                told = self._worker.call(measure_model, self._source, run, params, policy.report_classes)
                if told is not None:
                    results.append(SubjectEvaluation(subject, told))
        except (DataError, StorageError, WorkerCrashed) as error:
            if isinstance(error, RunChanged | DuplicateIdentity):
                raise
            results = []  # nothing half measured is told
            log.error("evaluation_failed", round=standing.round, code=error.code, detail=error.message, fix=error.fix)
        try:
            link.report_evaluation(run, standing.round, results)
        except DataError as refused:
            if isinstance(refused, RunChanged):
                raise
            log.error("evaluation_refused", round=standing.round, code=refused.code, detail=refused.message)
        else:
            log.info("evaluation_sent", round=standing.round, models=len(results), asked=standing.subjects)
        self._count(link)

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
                trusted=settings.trust(),
                wishes=settings.work.wishes,
            )
            extracted = self._worker.call(extract_new, request)
            log.info("extracted", **extracted.figures, **extracted.backends)
            if extracted.backends:
                self._note(backends=extracted.backends)
        except WorkStopped:
            raise
        except FlamestError as error:
            log.error("extraction_failed", code=error.code, detail=error.message, fix=error.fix)
        self._scanned = time.monotonic()

    def _keep_final_model(self, link: Link, run: RunSettings, standing: Standing) -> None:
        model = link.fetch(run, standing)
        self._count(link)
        state = self._settings.state
        final = ModelFile(run.head, model.params, run.labels, run.fingerprint, run.run, standing.round)
        adoption = self._choose(run, model)
        if adoption is not None and adoption.own:
            write_model(state / REFUSED_MODEL, final)
            write_model(state / FINAL_MODEL, read_model(state / OWN_MODEL))
        else:
            write_model(state / FINAL_MODEL, final)
        kept = "own" if adoption is not None and adoption.own else "final"
        self._note(adopted=kept, adopted_why=adoption.words if adoption else "")
        Corrections.of_run(state, run).forget()
        log.info("final_model", round=standing.round, sha256=model.sha256[:12], file=FINAL_MODEL, adopted=kept)

    def _choose(self, run: RunSettings, model: GlobalModel) -> Adoption | None:
        """Whether the own model stays in use; None when the policy does not ask, or nothing could be compared."""
        if not self._settings.policy.refuse_worse:
            return None
        try:
            return self._worker.call(choose_model, self._source, run, model.params, self._settings.state / OWN_MODEL)
        except (DataError, StorageError, WorkerCrashed) as error:
            log.error("not_compared", code=error.code, detail=error.message, fix=error.fix)
            return None

    def _say_why(self, event: str, round_number: int, error: FlamestError) -> None:
        self._become("failed", detail=f"round {round_number}: {error.message}")
        log.error(event, round=round_number, code=error.code, detail=error.message, fix=error.fix)

    def _become(self, doing: Doing, *, detail: str = "") -> None:
        if (doing, detail) != (self._status.doing, self._status.detail):
            self._note(doing=doing, detail=detail, since=_now())

    def _count(self, link: Link) -> None:
        sent, received = self._before
        self._note(sent_bytes=sent + link.sent_bytes, received_bytes=received + link.received_bytes)

    def _note(self, **changes: Any) -> None:
        changed = msgspec.structs.replace(self._status, **changes)
        if changed != self._status:
            self._status = changed
            write_status(self._settings.state, changed)


def _update_id(run: RunSettings, model: GlobalModel, silo: str) -> str:
    """The same round trained again after a crash gives the same id, so it is counted once."""
    text = f"{run.sha256}/{model.round}/{model.sha256}/{silo}".encode()
    return hashlib.sha256(text).hexdigest()[:32]


def _too_few(outcome: RoundOutcome, floor: int) -> str:
    return (
        f"{outcome.examples} labelled clips to train on, this silo's policy asks for {floor}: no update was sent. "
        "Add clips, or lower policy.min_samples if you accept what an update of few clips can tell"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
