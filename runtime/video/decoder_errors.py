"""Errors of a clip whose file cannot be opened, or in whose middle the decoder process failed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from ...base.child_process import ChildEnded, ChildProtocolError, ChildTimeout
from ...base.errors import DataError, StorageError
from ...base.files import open_regular, printable_path
from .decoder_messages import printable_text

OPENING_CODES = {"not_a_file": "video_not_a_file"}  # of base/files.py, for a clip


def clip_error(ended: ChildEnded, name: str, limit_s: float) -> DataError:
    """The error of a clip in whose middle the process ended, by its status."""
    if isinstance(ended, ChildTimeout) or ended.status == -signal.SIGXCPU:
        return _too_slow_error(name, limit_s)
    if isinstance(ended, ChildProtocolError):
        return invalid_answer_error(name, printable_text(ended.reason))
    if ended.status == -signal.SIGKILL:
        return DataError(
            f"{name}: the decoder process was killed, as the system does when memory is short",
            fix="run it again with more memory free",
            code="decoder_killed",
        )
    return DataError(
        f"{name}: the decoder process crashed on it ({ended.reason})",
        fix="convert the video again, or remove it",
        code="decoder_crashed",
    )


def invalid_answer_error(name: str, problem: str) -> DataError:
    return DataError(
        f"{name}: the decoder's answer is invalid: {problem}",
        fix="convert the video again, or remove it",
        code="decoder_crashed",
    )


@contextlib.contextmanager
def opened_clip(path: Path, inside: Path | None) -> Iterator[int]:
    """The descriptor of a regular file that is not empty. A pipe or a device is refused at once."""
    try:
        file = open_regular(path, inside=inside)
    except StorageError as error:
        raise DataError(error.message, fix=error.fix, code="video_unreadable") from error
    except DataError as error:
        raise DataError(error.message, fix=error.fix, code=OPENING_CODES.get(error.code, error.code)) from error
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DataError(
                f"{printable_path(path)} is empty",
                fix="copy the video again from its source, or remove it",
                code="video_empty",
            )
        yield file.fileno()


def _too_slow_error(name: str, limit_s: float) -> DataError:
    return DataError(
        f"{name} took longer than {limit_s:g} s to decode",
        fix="cut it into shorter clips",
        code="video_timeout",
    )
