"""How this process's C library keeps memory: the daemons move blocks of megabytes, again and again."""

from __future__ import annotations

import ctypes

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
