"""Bounds on what a bundle's graph may take: time to be opened, time of one run, memory.

A bundle that nobody signed may hold a graph that never ends. What can say so beforehand is refused beforehand
(runtime/bundle/graph_check.py); the rest ends here, as GraphError. One thread watches the runs of this process. After
``LIMIT_S`` it asks the runtime to stop; a runtime that has not stopped ``GRACE_S`` later, within one huge operator,
ends with the process.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import DataError, GraphError, printable
from ...base.process import memory_bytes

LIMIT_S = 300.0  # for opening a graph, and for one run: full-size graphs take seconds
GRACE_S = 60.0
LIMIT_BYTES = 16 << 30  # of a graph's tensors, or three quarters of the machine's memory where that is less
_POLL_S = 0.5


@dataclass(eq=False)
class _Watched:
    graph: str
    deadline: float  # on time.monotonic
    stop: Callable[[], object]
    stopped: bool = False


_watched: dict[int, _Watched] = {}  # one entry for each run in progress
_numbers = itertools.count()


@contextlib.contextmanager
def limited(graph: str, stop: Callable[[], object]) -> Iterator[None]:
    """Bound the time of the block, which opens or runs ``graph``; ``stop`` is called from another thread.

    Raises GraphError ``graph_limit`` when the time is over, ``graph_failed`` for any error of the runtime. Errors of
    this package pass.
    """
    _watcher()
    number, mine = next(_numbers), _Watched(graph, time.monotonic() + LIMIT_S, stop)
    _watched[number] = mine
    try:
        yield
    except (DataError, GraphError):
        raise
    except Exception as error:  # the runtimes' own exceptions share no public base
        if mine.stopped:
            raise _limit_error(graph) from error
        raise GraphError(
            f"{graph} failed as it ran: {printable(str(error))[-500:]}",
            fix="try --backend onnxruntime; if that fails too, export the bundle again",
            code="graph_failed",
        ) from error
    finally:
        del _watched[number]


@functools.cache
def graph_memory_bytes() -> int:
    """The memory that the tensors of all graphs of this process may take together."""
    return min(LIMIT_BYTES, memory_bytes() * 3 // 4)


@functools.cache
def limit_process_memory() -> None:
    """Bound what this process allocates from now on, for a runtime that has no bound of its own."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
    bound = pages * resource.getpagesize() + graph_memory_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or soft > bound:
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


@functools.cache
def _watcher() -> threading.Thread:
    thread = threading.Thread(target=_watch, name="graph-limits", daemon=True)
    thread.start()
    return thread


os.register_at_fork(after_in_child=_watcher.cache_clear)


def _watch() -> None:
    while True:
        time.sleep(_POLL_S)
        now = time.monotonic()
        for one in list(_watched.values()):
            if now > one.deadline + GRACE_S:
                _end_process(one.graph)
            elif now > one.deadline and not one.stopped:
                one.stopped = True
                one.stop()


def _end_process(graph: str) -> None:
    error = _limit_error(graph)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"error: {error.message}, and did not stop\n  fix: {error.fix}\n")
        sys.stderr.flush()
    os._exit(error.exit_code)


def _limit_error(graph: str) -> GraphError:
    return GraphError(
        f"{graph} took longer than {LIMIT_S:g} s to open or to run once",
        fix="use a bundle that your operator signed (docs/guides/signing.md); or give this machine fewer other tasks",
        code="graph_limit",
    )
