"""Who speaks for a silo: one agent at a time, told apart by the instance that it names. No clock of its own.

Two agents with one certificate (a copied machine, a forgotten test) would answer rounds in turns. The first one that
asks holds the identity until it has not been heard of for ``LEASE_S``, longer while it is at work on a round; another
is refused (``duplicate_identity``) and may ask again. An agent keeps its instance over restarts until its machine is
rebooted: then it waits. Agents that name none, from before this field, neither hold nor are refused.

Lets a few transfers through at a time, so that memory does not grow with the number of silos.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

LEASE_S = 60.0  # a second agent takes over at the earliest so long after the last word of the first


@dataclass(frozen=True)
class Lease:
    """An agent's hold on its identity."""

    instance: str
    until: float  # of one monotonic clock, the caller's


class Leases:
    """The leases of a run's silos; in memory, so that a restart of the coordinator begins without any."""

    def __init__(self) -> None:
        self._held: dict[str, Lease] = {}

    def take(self, silo: str, instance: str, now: float, seconds: float) -> bool:
        """Whether ``instance`` speaks for ``silo``; if so, for ``seconds`` and a lease's time from now at least."""
        if not instance:
            return True
        held = self._held.get(silo)
        if held is not None and held.instance != instance and now < held.until:
            return False
        self._held[silo] = Lease(instance, now + seconds + LEASE_S)
        return True


class TransferLimiter:
    """``async with turnstile.place(): …`` waits for one of ``places``, first come first served.

    A transfer that is not over after ``hold_s`` gives its place up and goes on: silos on slow lines must
    not keep the others waiting, and what they have in flight is little.
    """

    def __init__(self, places: int, hold_s: float) -> None:
        self._free = asyncio.Semaphore(places)
        self._hold_s = hold_s

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        await self._free.acquire()
        holding = True

        def give_up() -> None:
            nonlocal holding
            if holding:
                holding = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(self._hold_s, give_up)
        try:
            yield
        finally:
            timer.cancel()
            give_up()
