"""Retries of calls to the coordinator, cancelled when the process is asked to end."""

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
from .client_errors import ClientStopped, permanent_error, status_text

if TYPE_CHECKING:
    import grpc

T = TypeVar("T")
STOP_CHECK_S = 0.3  # how often a running call checks whether the process was asked to end


class Backoff(msgspec.Struct, frozen=True):
    """Pauses between the retries of one call: they double from the first to the longest, each varied by half.

    When a coordinator is still away after the first pause, all its silos lost it at the same moment, and they must
    not all come back at the same moment: from then on a pause is anything from 0 to ``spread_s``.
    """

    give_up_after_s: float = 30.0  # in all, per call
    first_s: float = 0.2
    longest_s: float = 8.0
    spread_s: float = 15.0
    sleep: Callable[[float], object] = time.sleep

    def pause_s(self, attempt: int, *, away: bool) -> float:
        """Return the pause after failed attempt ``attempt`` (from 1); ``away``: no one answered."""
        if away and attempt > 1:
            return random.uniform(0.0, self.spread_s)
        return min(self.first_s * 2.0 ** min(attempt - 1, 30), self.longest_s) * random.uniform(0.5, 1.5)


class RetryPolicy:
    """Retries of one connection. ``failed_attempts`` counts the attempts that no one answered.

    ``explain`` returns the reason why no TLS handshake succeeds, if it finds one.
    """

    def __init__(
        self, address: str, backoff: Backoff, shutdown: Shutdown | None, explain: Callable[[], IdentityError | None]
    ) -> None:
        self._address = address
        self._backoff = backoff
        self._shutdown = shutdown
        self._explain = explain
        self.failed_attempts = 0

    def call(self, attempt: Callable[[], T]) -> T:
        """Repeat ``attempt`` until it succeeds, fails permanently, or ``give_up_after_s`` is over."""
        import grpc

        started = time.monotonic()
        explained = False
        for attempt_number in itertools.count(1):
            try:
                return attempt()
            except grpc.FutureCancelledError as error:
                raise ClientStopped("asked to end while talking to the coordinator") from error
            except grpc.RpcError as error:
                self._raise_if_stopped()
                problem = permanent_error(error, self._address)
                if problem is None and not explained:
                    problem = self._explain()
                    explained = True
                if problem is not None:
                    raise problem from error
                away = cast("grpc.Call", error).code() is grpc.StatusCode.UNAVAILABLE
                self.failed_attempts += away
                pause = self._backoff.pause_s(attempt_number, away=away)
                if time.monotonic() - started + pause > self._backoff.give_up_after_s:
                    raise self._unreachable(error) from error
            self._backoff.sleep(pause)
            self._raise_if_stopped()
        raise AssertionError("count() does not end")

    def _unreachable(self, error: grpc.RpcError) -> UnreachableError:
        call = cast("grpc.Call", error)
        return UnreachableError(
            f"the coordinator at {self._address} does not answer ({call.code().name}: {status_text(call)})",
            fix="check that it runs, the address, and that the firewall lets this machine dial out to it",
        )

    def _raise_if_stopped(self) -> None:
        if self._shutdown is not None and self._shutdown.requested:
            raise ClientStopped("asked to end while talking to the coordinator")

    @contextmanager
    def cancelled_on_shutdown(self, call: Any) -> Iterator[None]:
        """Cancel ``call`` when the process is asked to end; this thread is blocked in it meanwhile."""
        ended = threading.Event()

        def watch(stop: Shutdown) -> None:
            while not ended.wait(STOP_CHECK_S):
                if stop.requested:
                    call.cancel()
                    return

        if self._shutdown is not None:
            threading.Thread(target=watch, args=(self._shutdown,), name="flamest-stop-watch", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            call.cancel()  # has no effect on a call that is over
