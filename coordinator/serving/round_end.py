"""A round's end: its updates become the next model, or it is abandoned and the model stays."""

from __future__ import annotations

import time

from ...base.errors import DataError, StorageError
from ...base.log import Log
from ...fedproto.head import params_sha256
from ...fedproto.tensors import encode_params
from ..rounds import Decision, OpenRound, after_abandon, after_close, on_leave, on_tick
from ..storage.journal import RoundEnd
from ..strategies.composition import aggregate
from ..strategies.norm_bound import learnt_norm
from .active_run import ActiveRun
from .final_evaluation import Finals
from .model_broadcast import Broadcast, Outgoing, broadcast, data_parts

log = Log("coordinator")

LOOK = "look for what damages files on this disk; the silos train again in the next round"


class Ending:
    """Ends the rounds of a run when it is time."""

    def __init__(self, live: ActiveRun, outgoing: Outgoing, finals: Finals) -> None:
        self._live = live
        self._outgoing = outgoing
        self._finals = finals

    async def tick(self) -> None:
        """End the open round if it is time. Raises StorageError when that cannot be made durable: try again."""
        live = self._live
        try:
            if live.trouble is not None:
                await live.on_disk(live.store.probe)
            await self._tick()
        except StorageError as problem:
            live.trouble = problem
            raise
        live.trouble = None

    async def _tick(self) -> None:
        live = self._live
        if live.quarantined:
            live.quarantined = await live.on_disk(live.store.journal.quarantined)  # the operator may have released one
        async with live.turn:
            live.state = on_leave(live.state, live.left())
            decision = on_tick(live.state, time.monotonic())
            if decision is Decision.COLLECT or live.stopping:
                return
            live.ending = True
            try:
                await (self._close() if decision is Decision.CLOSE else self._abandon())
            finally:
                live.ending = False
        self._outgoing.sent.clear()
        live.clock_moved = 0.0
        live.wake()
        await live.on_disk(live.store.tidy)

    async def _close(self) -> None:
        live, run, state = self._live, self._live.run, self._live.state
        current = live.open_round
        silos = len(live.enrolled() | current.reports.keys())  # one may have been revoked after it reported

        def combine() -> tuple[Broadcast, str, list[bytes]]:
            parts = live.store.contributions(current.number)
            mean = aggregate(run.strategy, run.head, live.params, parts, live.carried, silos)
            made = broadcast(run, live.params, mean)
            return made, params_sha256(made.params), data_parts(encode_params(run.head, made.params))

        try:
            made, sha256, parts = await live.on_disk(combine)
        except DataError as problem:
            await self._give_up(problem)
            return
        after, end = after_close(state, sha256, live.roll()), self._round_end(current, made.error)
        await live.on_disk(lambda: live.store.close_round(after, made.params, end, made.state))
        live.learnt = learnt_norm(await live.on_disk(live.store.journal.farthest))
        if after.open is None:
            await live.on_disk(lambda: self._finals.begin(after.last_round))
        self._outgoing.replace(state.model_sha256, made, parts)
        live.state, live.params, live.carried = after, made.params, made.state
        log.info(
            "round_closed",
            round=current.number,
            of=run.rounds,
            accepted=len(current.reports),
            wanted=current.roll.wanted,
            examples=sum(report.examples for report in current.reports.values()),
            seconds=end.seconds,
            model=sha256[:12],
        )
        if after.open is None:
            log.info("run_finished", run=run.run, rounds=after.closed, model=sha256[:12])

    async def _give_up(self, problem: DataError) -> None:
        """The round's updates have no mean: one was damaged on disk, or they are too large. The model stays."""
        number = self._live.open_round.number
        log.error("round_unusable", round=number, code=problem.code, detail=problem.message)
        if problem.code == "corrupt_update":
            kept = await self._live.on_disk(lambda: self._live.store.put_updates_aside(number))
            log.error("updates_put_aside", round=number, kept_in=kept.parent.name, fix=LOOK)
        await self._abandon()

    async def _abandon(self) -> None:
        live, current = self._live, self._live.open_round
        after, end = after_abandon(live.state, live.roll()), self._round_end(current)
        await live.on_disk(lambda: live.store.abandon_round(after, end))
        live.state = after
        log.warning(
            "round_abandoned", round=current.number, accepted=len(current.reports), min_silos=live.run.min_silos
        )

    def _round_end(self, current: OpenRound, codec_error: float = 0.0) -> RoundEnd:
        live, now = self._live, time.monotonic()
        started = now if current.deadline is None else current.deadline - live.run.deadline_s
        return RoundEnd(now - started, self._outgoing.sent.total(), codec_error, live.clock_moved)
