"""This process's memory: how the C library keeps it (daemons move blocks of megabytes again and again), its peak."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

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
