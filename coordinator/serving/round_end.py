"""A round's end: its updates become the next model, or it is abandoned and the model stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ...base.errors import DataError, StorageError
from ...base.log import Log
from ...fedproto.head import params_sha256
from ...fedproto.tensors import encode_params
from ..rounds import Decision, OpenRound, RunState, after_abandon, after_close, on_leave, on_tick
from ..storage.damaged_files import FIND_CAUSE
from ..storage.journal import RoundEnd
from ..strategies.claims import Claim, Limits, count_claims
from ..strategies.composition import aggregate, round_limits
from .active_run import ActiveRun
from .model_broadcast import Broadcast, ModelMessages, broadcast, data_parts

log = Log("coordinator")


class RoundCloser:
    """Closes or abandons the open round when it is time; after the last one calls ``on_last`` in the store's thread."""

    def __init__(self, active: ActiveRun, model: ModelMessages, on_last: Callable[[RunState], None]) -> None:
        self._active = active
        self._model = model
        self._on_last = on_last

    async def tick(self) -> None:
        """End the open round if it is time. Raises StorageError when that cannot be made durable: try again."""
        active = self._active
        try:
            if active.storage_problem is not None:
                await active.on_disk(active.store.probe)
            await self._tick()
        except StorageError as problem:
            active.storage_problem = problem
            raise
        active.storage_problem = None

    async def _tick(self) -> None:
        active = self._active
        if active.quarantined:
            active.quarantined = await active.on_disk(active.store.journal.quarantined)  # the operator may release one
        async with active.write_lock:
            active.state = on_leave(active.state, active.departed())
            decision = on_tick(active.state, time.monotonic())
            if decision is Decision.COLLECT or active.stopping:
                return
            active.closing = True
            try:
                await (self._close() if decision is Decision.CLOSE else self._abandon())
            finally:
                active.closing = False
        self._model.sent.clear()
        active.clock_moved = 0.0
        active.wake()
        await active.on_disk(active.store.tidy)

    async def _close(self) -> None:
        active, run, state = self._active, self._active.run, self._active.state
        current = active.open_round
        silos = len(active.enrolled() | current.accepted.keys())  # one may have been revoked after it reported

        def next_model() -> tuple[Broadcast, str, list[bytes]]:
            base, before, sent = active.params, active.server_state, active.store.contributions(current.number)
            counted = count_claims(sent, claims, limits, base)
            aggregated = aggregate(run.strategy, run.head, base, counted, before, silos)
            model = broadcast(run.codec, run.head, base, aggregated)
            return model, params_sha256(model.params), data_parts(encode_params(run.head, model.params))

        claims = await active.on_disk(lambda: active.store.journal.claims(current.number))
        checks, learnt = active.server_policy.checks, active.learnt_examples
        limits = round_limits(run.strategy, claims.values(), learnt, checks.examples_times, checks.norm_times)
        try:
            model, sha256, parts = await active.on_disk(next_model)
        except DataError as problem:
            await self._give_up(problem)
            return
        after, end = after_close(state, sha256, active.cohort()), self._round_end(current, model.error, limits)
        await active.on_disk(lambda: active.store.close_round(after, model.params, end, model.state))
        await active.on_disk(active.learn)
        if after.open is None:
            await active.on_disk(lambda: self._on_last(after))
        self._model.replace(state.model_sha256, model, parts)
        active.state, active.params, active.server_state = after, model.params, model.state
        _log_limited(current.number, claims, limits)
        log.info(
            "round_closed",
            round=current.number,
            of=run.rounds,
            accepted=len(current.accepted),
            wanted=current.cohort.wanted,
            examples=sum(update.examples for update in current.accepted.values()),
            seconds=end.seconds,
            model=sha256[:12],
        )
        if after.open is None:
            log.info("run_finished", run=run.run, rounds=after.closed, model=sha256[:12])

    async def _give_up(self, problem: DataError) -> None:
        """Abandon a round whose updates have no mean: a file was damaged on disk, or values are too large."""
        number = self._active.open_round.number
        log.error("round_unusable", round=number, code=problem.code, detail=problem.message)
        if problem.code == "corrupt_update":
            kept = await self._active.on_disk(lambda: self._active.store.keep_damaged_updates(number))
            log.error(
                "damaged_updates_moved",
                round=number,
                kept_in=kept.parent.name,
                fix=f"{FIND_CAUSE}; the silos train again in the next round",
            )
        await self._abandon()

    async def _abandon(self) -> None:
        active, current = self._active, self._active.open_round
        after, end = after_abandon(active.state, active.cohort()), self._round_end(current)
        await active.on_disk(lambda: active.store.abandon_round(after, end))
        active.state = after
        log.warning(
            "round_abandoned", round=current.number, accepted=len(current.accepted), min_silos=active.run.min_silos
        )

    def _round_end(self, current: OpenRound, codec_error: float = 0.0, limits: Limits | None = None) -> RoundEnd:
        active, now = self._active, time.monotonic()
        started = now if current.deadline is None else current.deadline - active.run.deadline_s
        return RoundEnd(now - started, self._model.sent.total(), codec_error, active.clock_moved, limits)


def _log_limited(number: int, claims: Mapping[str, Claim], limits: Limits | None) -> None:
    """Log every update that counts less than as sent, a line for each silo and round: a claim beyond its limit warns.

    An honest silo with more clips than the others moves farther, and is moved towards the model: that warns of nothing.
    """
    if limits is None:
        return
    for silo, claim in claims.items():
        counted, share = limits.counted(claim), limits.share(claim)
        fields = {"round": number, "silo": silo, "norm": claim.norm, "share": round(share, 3)}
        if counted < claim.examples:
            fix = "if the silo does have so many examples, raise checks.examples_times"
            log.warning("update_limited", claimed=claim.examples, counted=counted, fix=fix, **fields)
        elif share < 1.0:
            log.info("update_shortened", **fields)
