"""This process: its cores, its memory, its orderly end, and crash messages that name no data.

Memory: settings of the C library for daemons that allocate and free blocks of megabytes, and the peak.
End: the first SIGTERM or SIGINT asks for it, the second ends the process at once. SIGHUP asks to read files again.
Crash: the message says where the error happened, not with which data.
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
    """Return the number of cores that this process may use: those it is scheduled on, or fewer under a CPU quota.

    A quota (``docker run --cpus 2``, systemd's ``CPUQuota=``) takes no core away: threads for all of a host's 64 cores
    would share the time of two, and wait for each other. https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max),
    for version 1 https://docs.kernel.org/scheduler/sched-bwc.html
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(cgroups, own))]))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of every control group of this process that has one."""
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
    """Yield the control groups (version 2) from the root to this process's own; a container sees its own as root."""
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


def memory_bytes(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Return the memory that this process may use: the machine's, or less under a limit of its control groups."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limits = [folder / "memory.max" for folder in _groups(cgroups, own)]
    for file in (*limits, cgroups / "memory" / "memory.limit_in_bytes"):
        try:
            sizes.append(int(file.read_text()))
        except (OSError, ValueError):  # "max"
            continue
    return min(sizes)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
REUSED_BYTES = 32 << 20  # the largest that glibc takes


def tune_malloc() -> bool:
    """Make the C library keep freed blocks up to 32 MiB, instead of returning and faulting them in again.

    Limits it to two heaps; otherwise every thread keeps its own. Call it before threads start. Returns False, and
    changes nothing, where there is no glibc. See mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((M_MMAP_THRESHOLD, REUSED_BYTES), (M_TRIM_THRESHOLD, REUSED_BYTES), (M_ARENA_MAX, 2))
    done = [mallopt(which, value) == 1 for which, value in wanted]  # a list: each is set, also after a failure
    return all(done)


def trim_memory() -> bool:
    """Return freed memory that glibc keeps to the system; False when there was none, or no glibc.

    See malloc_trim(3), https://man7.org/linux/man-pages/man3/malloc_trim.3.html.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    return bool(trim(ctypes.c_size_t(0)))


def peak_resident_kb() -> int:
    """Return the peak resident memory of this process so far, KiB (VmHWM, proc(5)).

    Falls back to ``ru_maxrss`` of getrusage(2) where there is no /proc; that starts at the parent's memory at the time
    of the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Shutdown:
    """Flag that signals set and loops check.

    >>> stop = Shutdown.on_signals()
    >>> while not stop.wait(5.0):    # seconds
    ...     work()
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reload = threading.Event()
        self.signal = 0  # SIGINT or SIGTERM, when one of them asked for the end

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
        self.signal = number
        self._event.set()

    def request(self) -> None:
        self._event.set()

    def request_reload(self) -> None:
        self._reload.set()

    def take_reload(self) -> bool:
        """Return True when SIGHUP came since the last call."""
        requested = self._reload.is_set()
        self._reload.clear()
        return requested

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep up to ``seconds``; return True as soon as shutdown is requested."""
        return self._event.wait(seconds)


def error_location(error: BaseException) -> str:
    """Return the error's types and places without its messages, which can hold file names, labels or values.

    For example ``KeyError in extraction/store.py:81 read <- agent/tasks.py:60 train_round``.
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
    """Disable core dumps of this process and its children: a dump would hold features, captions and labels."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def keep_crashes_private(*, full_messages: bool) -> None:
    """Disable core dumps and report uncaught errors by location only; with ``full_messages``, as Python does."""
    no_core_dumps()
    if full_messages:
        return

    def report(error: BaseException) -> None:
        sys.stderr.write(
            f"error: unexpected {error_location(error)}\n"
            "  fix: please report it; --log-level debug shows its message too, which may name data\n"
        )

    def of_main(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(error.with_traceback(trace))

    def of_thread(arguments: Any) -> None:
        if arguments.exc_value is not None and arguments.exc_type is not SystemExit:
            report(arguments.exc_value)

    sys.excepthook = of_main
    threading.excepthook = of_thread
