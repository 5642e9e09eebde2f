"""Limits on what silos may do: calls at one time (``CallShares``) and in a second (``CallRates``), one agent per
identity (``Leases``), a few transfers (``TransferLimiter``).

Two agents with one certificate (a copied machine, a forgotten test) would both answer rounds. The first one that
asks holds the identity until it has been silent for ``LEASE_S``, longer while it is at work on a round; another
is refused (``duplicate_identity``) and may ask again. Agents are distinguished by the instance that they name. It stays
the same over an agent's restarts until its machine is rebooted: then the agent waits until its old lease ends. An agent
that names no instance neither holds a lease nor is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from ...base.errors import DataError
from ...base.token_bucket import TokenBucket
from ...fedproto import calls

CALLS_AT_ONCE = 2_000  # of a silo; an agent needs three a round
CALL_EVERY_S = 1 / 200  # and one more; further ones are refused, slowly
SLOW_S = 1.0  # until such a refusal: shorter than connections.REFUSED_S
LEASE_S = 60.0  # a second agent is accepted at the earliest this long after the first was last heard


@dataclass(frozen=True)
class Lease:
    """An agent's hold on its identity."""

    instance: str
    until: float  # of one monotonic clock, the caller's


class Leases:
    """The leases of a run's silos, without a clock of their own; in memory, so a restart drops them."""

    def __init__(self) -> None:
        self._held: dict[str, Lease] = {}

    def take(self, silo: str, instance: str, now: float, seconds: float) -> bool:
        """Return whether ``instance`` may speak for ``silo``; if so, for ``seconds`` and a lease from ``now``."""
        if not instance:
            return True
        held = self._held.get(silo)
        if held is not None and held.instance != instance and now < held.until:
            return False
        self._held[silo] = Lease(instance, now + seconds + LEASE_S)
        return True


class CallShares:
    """Calls under way, by silo. No silo, nor all others together, can keep one from ``MIN_CALLS_PER_SILO`` calls."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()

    @contextlib.contextmanager
    def call(self, silo: str) -> Iterator[None]:
        """Count a call for the block. Raises DataError (``too_many_calls``)."""
        own = self._under_way[silo]
        if own >= calls.MAX_CALLS_PER_SILO:
            raise DataError(f"silo '{silo}' has {own} calls under way, more than an agent needs", code="too_many_calls")
        if own >= calls.MIN_CALLS_PER_SILO and self._under_way.total() >= calls.MAX_CALLS:
            raise DataError(f"the silos have {calls.MAX_CALLS} calls under way: ask again", code="too_many_calls")
        self._under_way[silo] += 1
        try:
            yield
        finally:
            self._under_way[silo] -= 1
            if not self._under_way[silo]:
                del self._under_way[silo]


class CallRates:
    """Calls in a second, by caller. A refusal costs as much as an answer: what is too fast is refused slowly.

    Streams of a connection are few, so a caller that waits for its answers is held back; gRPC itself holds back one
    that resets them.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    async def within(self, caller: str) -> bool:
        """Return whether ``caller`` may make one more call; False only after ``SLOW_S``.

        The callers' names must be few: enrolled silos, not what strangers call themselves.
        """
        bucket = self._buckets.setdefault(caller, TokenBucket(CALLS_AT_ONCE, CALL_EVERY_S))
        if bucket.take(time.monotonic()):
            return True
        await asyncio.sleep(SLOW_S)
        return False


class SiloPlaces:
    """A few places for each silo, for what costs memory while it is under way; more of the same silo wait."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._by_silo: dict[str, asyncio.Semaphore] = {}

    def of(self, silo: str) -> asyncio.Semaphore:
        """Return the places of ``silo``, to hold one with ``async with``."""
        return self._by_silo.setdefault(silo, asyncio.Semaphore(self._places))


class TransferLimiter:
    """Limits transfers to ``places`` at a time, so that memory does not grow with the number of silos.

    ``async with limiter.place(): …`` waits for a place, first come first served. A transfer that is not over after
    ``hold_s`` gives its place up and continues: silos on slow connections must not keep the others waiting, and they
    have little data in flight.
    """

    def __init__(self, places: int, hold_s: float) -> None:
        self._free = asyncio.Semaphore(places)
        self._hold_s = hold_s

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place for the block, at most ``hold_s`` seconds."""
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
