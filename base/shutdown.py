"""Ending in order: the first SIGTERM or SIGINT asks, the second one ends at once. SIGHUP asks to read files anew."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


class Shutdown:
    """A flag that signals raise and loops watch.

    >>> stop = Shutdown.on_signals()
    >>> while not stop.wait(5.0):    # seconds
    ...     work()
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reload = threading.Event()

    @classmethod
    def on_signals(cls) -> Shutdown:
        """Install handlers for SIGTERM, SIGINT and SIGHUP (main thread only) and ignore SIGPIPE."""
        shutdown = cls()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, shutdown._on_signal)
        signal.signal(signal.SIGHUP, lambda *_: shutdown.request_reload())
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        return shutdown

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            os._exit(128 + number)
        self._event.set()

    def request(self) -> None:
        self._event.set()

    def request_reload(self) -> None:
        self._reload.set()

    def take_reload(self) -> bool:
        """Whether SIGHUP came since the last question."""
        asked = self._reload.is_set()
        self._reload.clear()
        return asked

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep up to ``seconds``; True as soon as the end was asked for."""
        return self._event.wait(seconds)
