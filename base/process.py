"""How many cores this process may use.

This process's memory: how the C library keeps it (daemons move blocks of megabytes again and again), its peak.

Ending in order: the first SIGTERM or SIGINT asks, the second one ends at once. SIGHUP asks to read files anew.

What a crash may say: where it happened, not with which data. For processes that handle what may not leave them.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """The cores that the system schedules this process on, or fewer where it has a quota of processor time.

    A quota (``docker run --cpus 2``, systemd's ``CPUQuota=``) takes no core away: threads for all of a host's 64 cores
    would share the time of two, and wait for each other. https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max),
    for version 1 https://docs.kernel.org/scheduler/sched-bwc.html
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(cgroups, own))]))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Cores' worth of processor time, of every group that this process is in and that has a limit."""
    for folder in _groups(cgroups, own):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        yield from _cores(quota, period)
    try:
        quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text()
    except OSError:
        return
    yield from _cores(quota, period)


def _groups(cgroups: Path, own: Path) -> Iterator[Path]:
    """Version 2's groups from this process's own up to the root; a container sees its own as the root."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    yield cgroups
    folder = cgroups
    for part in Path(path).parts:
        folder /= part
        yield folder


def _cores(quota: str, period: str) -> Iterator[float]:
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return
    if cores > 0:  # version 1 says -1 for no limit
        yield cores


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
REUSED_BYTES = 32 << 20  # the largest that glibc takes


def reuse_blocks() -> bool:
    """Let freed blocks up to 32 MiB be used again instead of being given back and faulted in anew, page by page.

    Two heaps in all, or every thread would keep its own. False where there is no glibc; nothing changes then. Call it
    before threads are started. See mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((M_MMAP_THRESHOLD, REUSED_BYTES), (M_TRIM_THRESHOLD, REUSED_BYTES), (M_ARENA_MAX, 2))
    done = [mallopt(which, value) == 1 for which, value in wanted]  # each, also after one that was refused
    return all(done)


def give_back_freed() -> bool:
    """Give freed memory back to the system that glibc would keep for later. False where there was none, or no glibc.

    See malloc_trim(3), https://man7.org/linux/man-pages/man3/malloc_trim.3.html.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    return bool(trim(ctypes.c_size_t(0)))


def peak_resident_kb() -> int:
    """The largest resident memory of this program so far, KiB (VmHWM, proc(5)).

    ``ru_maxrss`` of getrusage(2), which stands in where there is no /proc, begins at what the parent held when it
    started this process.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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


def where(error: BaseException) -> str:
    """``KeyError in agent/extraction/store.py:81 read <- agent/tasks.py:60 train_round``:
    kinds and places, no messages.

    A message can hold a file's name, a label, or values.
    """
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        frames = [
            f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(seen.__traceback__)
        ]
        parts.append(f"{type(seen).__name__} in {' <- '.join(reversed(frames)) or 'nowhere'}")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "; after ".join(parts)


def no_core_dumps() -> None:
    """A core file would hold features, captions and labels: none is written, by this process and those it starts."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def keep_crashes_private(*, say_all: bool) -> None:
    """No core dumps, and errors that nobody caught are told by ``where``; with ``say_all`` as Python tells them."""
    no_core_dumps()
    if say_all:
        return

    def tell(error: BaseException) -> None:
        sys.stderr.write(
            f"error: unexpected {where(error)}\n"
            "  fix: please report it; --log-level debug tells its message too, which may name data\n"
        )

    def of_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        tell(error.with_traceback(trace))

    def of_thread(arguments: Any) -> None:
        if arguments.exc_value is not None and arguments.exc_type is not SystemExit:
            tell(arguments.exc_value)

    sys.excepthook = of_main
    threading.excepthook = of_thread
