"""The daemon's loop: extract new clips, ask the coordinator for work, train, send, ask again.

The heavy work runs in the worker process; this one waits, communicates and keeps the status.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass

from ..base.clock import utc_text
from ..base.errors import DataError, FlamestError, IdentityError, StorageError, UnreachableError
from ..base.files import FileLock
from ..base.log import LimitedLog, Log
from ..base.process import Shutdown
from ..fedproto.codecs import more_exact
from ..fedproto.records import GlobalModel, Phase, RunSettings, TaskStatus, Update
from .client import ClientStopped, CoordinatorClient, DuplicateIdentity, RunChanged, StaleUpdate
from .config_check import embedding_problem
from .drift import DriftWatch
from .egress.evaluation_noise import noise_secret
from .egress.guard import EgressGuard
from .egress.pending_update import PendingUpdate
from .egress.policy import PolicyRefused
from .end_of_run import OWN_MODEL, EndOfRun, model_in_use
from .handshake import key_warning
from .identity import agent_instance
from .new_clips import NewClips
from .pauses import GrowingPause, RoundAllowance, RunProgress
from .renewal import Renewal
from .settings import AgentSettings
from .standing_aside import StandingAside
from .status import LOCK_FILE, AgentStatus, DaemonState, StatusNotes
from .tasks import DataSource, RoundOutcome, RoundWork, train_round
from .worker import Worker, WorkerCrashed, WorkExpired, WorkStopped

DUPLICATE_S = 60.0  # pause before an agent asks again whether the other one with its identity is gone
POLL_S = 20.0  # how long the coordinator may hold a request for work open
# Pause before the daemon connects again, after a call's own retries (retry.py) have given up: a longer outage, so it
# doubles from the first to the second, over as many calls as it takes.
RECONNECT_S = (1.0, 60.0)
NOT_SENT: tuple[DaemonState, ...] = ("refused_by_policy", "failed")

log = Log("agent")
asked_log = LimitedLog("agent")  # for events that a coordinator can cause without end


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


@dataclass(frozen=True, eq=False)
class _OpenRound:
    """A round to answer, and when it is too late for that."""

    run: RunSettings
    task: TaskStatus
    until: float  # on the clock of time.monotonic


class _Daemon:
    def __init__(self, settings: AgentSettings, silo: str, shutdown: Shutdown, worker: Worker) -> None:
        self._settings = settings
        self._silo = silo
        self._shutdown = shutdown
        self._worker = worker
        self._progress = RunProgress()
        self._repeats = GrowingPause()  # with what the coordinator asks for again and again
        self._bad_replies = GrowingPause()
        self._allowance = RoundAllowance()
        self._aside = StandingAside(settings.store, settings.policy)
        self._instance = agent_instance(settings.state)
        self._source = DataSource(
            settings.store,
            settings.precision,
            settings.policy.hold_out,
            settings.work.threads,
            noise_secret(settings.state),
            settings.aliases,
        )
        first = AgentStatus(pid=os.getpid(), silo=silo, since=utc_text(), **model_in_use(settings.state))
        self._notes = StatusNotes(settings.state, first)
        self._new_clips = NewClips(settings, worker, self._notes)
        self._drift = DriftWatch(settings.store, settings.precision, settings.state, settings.work.rescan_s)

    def serve(self, *, once: bool) -> AgentStatus:
        settings = self._settings
        log.info("starting", silo=self._silo, coordinator=settings.coordinator.address)
        if problem := key_warning(settings.coordinator.key):
            log.warning("key_readable", detail=problem)
        self._guard = EgressGuard.open(settings.state, settings.policy, self._silo, settings.coordinator)
        self._end_of_run = EndOfRun(settings.state, self._guard, self._worker, self._source)
        self._note_sent()
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
                    return self._notes.status
            except (WorkStopped, ClientStopped):
                break
            except RunChanged as change:
                asked_log.info("run_changed", who="coordinator", detail=change.message)
                self._shutdown.wait(self._repeats.pause_s())
            except DuplicateIdentity as error:
                self._notes.set_state("duplicate_identity", detail=error.with_fix)
                log.error("duplicate_identity", detail=error.message, fix=error.fix)
                self._shutdown.wait(DUPLICATE_S * random.uniform(0.8, 1.2))
            except IdentityError:
                if not self._renew_if_due():  # otherwise the refused certificate was replaced meanwhile
                    raise
            except UnreachableError as error:
                client.reconnect()
                self._notes.set_state("unreachable", detail=error.message)
                asked_log.warning("unreachable", who="coordinator", retry_s=pause, detail=error.message)
                self._shutdown.wait(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, RECONNECT_S[1])
            except (DataError, StorageError) as error:
                self._notes.note_error("bad_reply", self._progress.round, error)
                self._shutdown.wait(self._bad_replies.pause_s())
            except MemoryError:
                problem = StorageError(
                    "there is not enough memory for what is asked",
                    fix="free memory, or give this machine more; [work] threads = 1 needs less",
                    code="out_of_memory",
                )
                self._notes.note_error("bad_reply", self._progress.round, problem)
                self._shutdown.wait(self._bad_replies.pause_s())
        self._notes.set_state("stopped")
        log.info("stopped", run=self._notes.status.run, round=self._notes.status.round)
        return self._notes.status

    def note_failure(self, error: FlamestError) -> None:
        """Leave the reason why the daemon ended in the status."""
        self._notes.set_state("stopped", detail=error.message, code=error.code)

    def _serve_run(self, client: CoordinatorClient, run: RunSettings, *, once: bool) -> bool:
        """Serve a run from joining to its end; True when it has finished and ``once`` asks to end then."""
        misfit = self._misfit(run)  # before the hours that an extraction may take
        self._new_clips.extract_if_due()
        log.info("joined", run=run.run, rounds=run.rounds, settings=run.sha256[:12])
        self._notes.note(run=run.run, rounds=run.rounds, round=self._guard.last_round(run))
        if run.sha256 != self._progress.run_sha256:
            self._progress = RunProgress(run.sha256)
        while not self._shutdown.requested:
            self._progress.note_outage(client.failed_attempts)
            self._renew_if_due()
            if self._aside.has_ended(run):
                self._progress.round = 0  # the open round is looked at again
            answered = self._aside.answered(run, self._progress.round)
            task = client.wait(run, answered, POLL_S, instance=self._instance)
            self._note_traffic(client)
            if task.phase is Phase.OPEN:
                self._open_round(client, _OpenRound(run, task, time.monotonic() + task.deadline_s))
                continue
            if task.phase is Phase.EVALUATE and self._progress.evaluated != task.model_sha256:
                self._evaluate(client, run, task)
                continue
            if task.phase is Phase.CALIBRATE and self._progress.counted != (task.model_sha256, task.temperature):
                self._calibrate(client, run, task)
                continue
            if task.phase in (Phase.FINISHED, Phase.EVALUATE):  # EVALUATE again: the report was refused
                if self._progress.adopted != task.model_sha256:
                    self._adopt_model(client, run, task)
                self._notes.set_state("finished", detail=self._aside.at_end(run))
                if once:
                    return True
            elif misfit is not None and self._notes.status.doing != "failed":
                self._notes.set_state("failed", detail=misfit.with_fix, code=misfit.code)
            elif (
                not self._aside.show(run, self._notes) and self._notes.status.doing not in NOT_SENT
            ):  # the reason why nothing was sent stays until the next round
                self._notes.set_state("waiting")
            self._drift.look_if_due(self._worker, self._notes)
            self._worker.rest()
            self._shutdown.wait(task.poll_after_s)
            self._new_clips.extract_if_due()
        return False

    def _misfit(self, run: RunSettings) -> FlamestError | None:
        """Return why this silo's bundle cannot serve the run, and log it; its rounds will be declined."""
        try:
            problem: FlamestError | None = embedding_problem(self._settings, run)
        except FlamestError as error:  # of the bundle: extraction reports it
            log.debug("bundle_not_compared", detail=error.message)
            return None
        if problem is not None:
            asked_log.error("run_does_not_fit", who="coordinator", code=problem.code, detail=problem.message)
            self._notes.set_state("failed", detail=problem.with_fix, code=problem.code)
        return problem

    def _open_round(self, client: CoordinatorClient, at: _OpenRound) -> None:
        """Answer a round once; one that is asked for again after an outage is answered again, each time later."""
        if at.task.round == self._progress.round:  # the coordinator was not away: it has this silo's answer
            asked_log.warning("round_repeated", who="coordinator", round=at.task.round)
            self._worker.rest()
            self._shutdown.wait(self._repeats.pause_s())
            return
        self._answer_round(client, at)
        again = self._progress.note_round(at.task.round)
        pause = self._repeats.pause_s() if again else self._allowance.pause_s()
        self._shutdown.wait(max(pause, self._guard.pause_s))

    def _evaluate(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Report how the models that the coordinator offers do on the held-out clips."""
        self._notes.set_state("evaluating")
        self._end_of_run.evaluate(client, run, task)
        self._note_traffic(client)
        self._note_budget()
        if self._progress.evaluated:  # another final model of the same run
            self._shutdown.wait(self._repeats.pause_s())
        self._progress.evaluated = task.model_sha256

    def _calibrate(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Report the numbers that calibrate the final model, of the held-out clips."""
        self._notes.set_state("evaluating")
        self._end_of_run.calibrate(client, run, task)
        self._note_traffic(client)
        self._note_budget()
        before, self._progress.counted = self._progress.counted, (task.model_sha256, task.temperature)
        if before[0] and (before != (task.model_sha256, 0.0) or task.temperature == 0):  # no second step after a first
            self._shutdown.wait(self._repeats.pause_s())

    def _adopt_model(self, client: CoordinatorClient, run: RunSettings, task: TaskStatus) -> None:
        """Put the final model to use, or keep this silo's own where the policy finds that better."""
        self._notes.set_state("evaluating")
        in_use = self._end_of_run.adopt_model(client, run, task, compare=self._aside.refusal(run) is not None)
        self._note_traffic(client)
        self._notes.note(**in_use.as_status(run.run))
        if self._progress.adopted:
            self._shutdown.wait(self._repeats.pause_s())
        self._progress.adopted = task.model_sha256

    def _renew_if_due(self) -> bool:
        """Use a renewed certificate, if there is one; True if so. The run continues over the new connection."""
        renewed = self._renewal.reload(requested=self._shutdown.take_reload())
        self._renewal.warn_daily()
        self._note_certificate()
        return renewed

    def _answer_round(self, client: CoordinatorClient, at: _OpenRound) -> None:
        """Train on the round's model and send the update, unless this silo's policy forbids it.

        Raises DataError for a model that cannot be used: the round is not answered.
        """
        run, number = at.run, at.task.round
        if self._aside.show(run, self._notes):
            return
        self._aside.look()
        self._notes.set_state("training")
        try:
            model = client.fetch(run, at.task)
        except StaleUpdate as stale:
            asked_log.warning("update_stale", who="coordinator", round=number, code=stale.code, detail=stale.message)
            return
        try:
            pending = self._guard.pending(run, model) or self._train(model, at)
            if pending is not None:
                self._send(client, run, pending)
                self._bad_replies.forgive()
        except PolicyRefused as refused:
            self._guard.record_refusal(run, model, refused)
            self._notes.set_state("refused_by_policy", detail=refused.message, code=refused.code)
            self._aside.begin(run, refused)
            self._aside.show(run, self._notes)
            who, examples = refused.reason, refused.examples
            asked_log.warning(refused.code, who=who, round=number, reason=refused.reason, examples=examples)
        except (RunChanged, DuplicateIdentity):
            raise
        except StaleUpdate as stale:
            asked_log.warning("update_stale", who="coordinator", round=number, code=stale.code, detail=stale.message)
        except (DataError, StorageError) as error:  # refused by the coordinator, or the ledger cannot be written
            self._notes.note_error("update_failed", number, error)

    def _send(self, client: CoordinatorClient, run: RunSettings, pending: PendingUpdate) -> None:
        receipt = self._guard.send(client, run, pending)
        self._note_traffic(client)
        self._notes.set_state("waiting")
        self._notes.note(round=receipt.round)
        self._note_sent()
        log.info("update_sent", round=receipt.round, examples=pending.update.examples)

    def _train(self, model: GlobalModel, at: _OpenRound) -> PendingUpdate | None:
        """Train a new update; None when this silo's data cannot serve the round (the status has the reason).

        Raises PolicyRefused.
        """
        run, policy = at.run, self._settings.policy
        outcome = self._run_training(model, at)
        if outcome is None:
            return None
        counts = {"held_out": outcome.held_out, "ignored": outcome.ignored, "left_out": outcome.left_out}
        self._notes.note(clips=outcome.examples, **counts)
        if outcome.refused is not None:
            raise outcome.refused
        rare = {"left_out": outcome.left_out} if outcome.left_out else {}
        log.info("trained", round=model.round, clips=outcome.examples, loss=outcome.loss, **rare)
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

    def _run_training(self, model: GlobalModel, at: _OpenRound) -> RoundOutcome | None:
        """Train in the worker process; None when it failed (the status has the reason)."""
        run, settings, policy = at.run, self._settings, self._settings.policy
        work = RoundWork(
            run=run,
            silo=self._silo,
            model=model,
            counted_round=at.task.counted_round,
            state=settings.state,
            policy=policy,
            spends=self._guard.spends,
            codec=more_exact(run.codec, policy.codec or run.codec),
            own=settings.state / OWN_MODEL if policy.refuse_worse else None,
        )
        try:
            return self._worker.call(train_round, self._source, work, until=at.until)
        except WorkExpired:
            late = DataError(
                "training was not done at the round's deadline: nothing is sent",
                fix="the next round is trained; ask the operator for a longer deadline if it stays",
                code=WorkExpired.code,
            )
            self._notes.note_error("training_failed", model.round, late)
            return None
        except (DataError, StorageError, WorkerCrashed) as error:
            self._notes.note_error("training_failed", model.round, error)
            return None

    def _note_sent(self) -> None:
        """Note what has left by the ledger, and what may still leave."""
        self._notes.note(updates_sent=self._guard.updates, update_bytes=self._guard.update_bytes)
        self._note_budget()

    def _note_budget(self) -> None:
        """Note how many evaluations may still leave and, with record-dp, how much of the privacy budget is spent."""
        self._notes.note(evaluations_left=self._guard.evaluations_left)
        if (budget := self._settings.policy.budget) is not None:
            self._notes.note(epsilon_spent=self._guard.epsilon, epsilon_budget=budget[0])

    def _note_certificate(self) -> None:
        renewal = self._renewal
        self._notes.note(
            certificate_expires=renewal.expires, certificate_sha256=renewal.sha256, certificate_problem=renewal.problem
        )

    def _note_traffic(self, client: CoordinatorClient) -> None:
        self._notes.note_traffic(sent_bytes=client.sent_bytes, received_bytes=client.received_bytes)
