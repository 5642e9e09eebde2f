"""Lets a few transfers through at a time, so that memory does not grow with the number of silos."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Turnstile:
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
