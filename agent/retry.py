"""How a call to the coordinator is tried again, and given up when the process is asked to end."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from ..base.errors import IdentityError, UnreachableError
from ..base.process import Shutdown
from .client_errors import ClientStopped, lasting_problem

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")
WATCH_S = 0.3  # how often a running call looks whether the process was asked to end


class Backoff(msgspec.Struct, frozen=True):
    """How long a call is tried again. Pauses double from the first to the longest, each varied by half.

    A coordinator that is still away after the first pause lost all its silos at one moment, and they must not come back
    at one moment: from then on pauses are anything from 0 to ``spread_s``.
    """

    give_up_after_s: float = 30.0  # in all, per call
    first_s: float = 0.2
    longest_s: float = 8.0
    spread_s: float = 15.0
    sleep: Callable[[float], object] = time.sleep

    def pause_s(self, attempt: int, *, away: bool) -> float:
        """Before trying again after failed attempt ``attempt`` (from 1); ``away``: no one answered."""
        if away and attempt > 1:
            return random.uniform(0.0, self.spread_s)
        return min(self.first_s * 2.0 ** min(attempt - 1, 30), self.longest_s) * random.uniform(0.5, 1.5)


class RetryPolicy:
    """One link's: ``losses`` counts the attempts that no one answered. ``explain`` looks why no handshake succeeds."""

    def __init__(
        self, address: str, retry: Backoff, shutdown: Shutdown | None, explain: Callable[[], IdentityError | None]
    ) -> None:
        self._address = address
        self._retry = retry
        self._shutdown = shutdown
        self._explain = explain
        self.losses = 0

    def persist(self, attempt: Callable[[], T]) -> T:
        """``attempt`` until it succeeds, fails for good, or patience is over."""
        import grpc

        started = time.monotonic()
        explained = False
        for attempt_number in itertools.count(1):
            try:
                return attempt()
            except grpc.FutureCancelledError as error:
                raise ClientStopped("asked to end while talking to the coordinator") from error
            except grpc.RpcError as error:
                self._end_if_asked()
                problem = lasting_problem(error, self._address)
                if problem is None and not explained:
                    problem = self._explain()
                    explained = True
                if problem is not None:
                    raise problem from error
                away = cast("grpc.Call", error).code() is grpc.StatusCode.UNAVAILABLE
                self.losses += away
                pause = self._retry.pause_s(attempt_number, away=away)
                if time.monotonic() - started + pause > self._retry.give_up_after_s:
                    raise self._unreachable(error) from error
            self._retry.sleep(pause)
            self._end_if_asked()
        raise AssertionError("count() does not end")

    def _unreachable(self, error: grpc.RpcError) -> UnreachableError:
        call = cast("grpc.Call", error)
        said = f"{call.code().name}: {call.details()}"
        return UnreachableError(
            f"the coordinator at {self._address} does not answer ({said})",
            fix="check that it runs, the address, and that the firewall lets this machine dial out to it",
        )

    def _end_if_asked(self) -> None:
        if self._shutdown is not None and self._shutdown.requested:
            raise ClientStopped("asked to end while talking to the coordinator")

    @contextmanager
    def watched(self, call: Any) -> Iterator[None]:
        """Cancel ``call`` when the process is asked to end; this thread is blocked in it meanwhile."""
        ended = threading.Event()

        def watch(stop: Shutdown) -> None:
            while not ended.wait(WATCH_S):
                if stop.requested:
                    call.cancel()
                    return

        if self._shutdown is not None:
            threading.Thread(target=watch, args=(self._shutdown,), name="flamest-link-watch", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            call.cancel()  # nothing happens to a call that is over
