"""What a crash may say: where it happened, not with which data. For processes that handle what may not leave them."""

from __future__ import annotations

import resource
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any


def where(error: BaseException) -> str:
    """``KeyError in agent/store.py:81 read <- agent/tasks.py:60 train_round``: kinds and places, no messages.

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
