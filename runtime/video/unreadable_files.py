"""Files whose segments cannot be read: found out by few segments, and the others are not tried.

A file's segments together may so take the time limit of a few clips for nothing, not each of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...base.errors import DataError
from ...base.files import printable_path
from ..clip_records import Clip

FILE_CODES = frozenset({"video_empty", "video_not_video", "video_no_stream", "video_unknown_codec"})
COSTLY_CODES = {"decoder_crashed": "crashed on", "video_timeout": "took too long for"}
MOST_COSTLY = 3  # segments of one file that may fail so, none being read, before the others are given up
MOST_COSTLY_OF_READ = 6  # the same where others of its segments are read

_File = tuple[Path, str]  # path, SHA-256


class UnreadableFiles:
    """Outcomes of files by their segments; clips that are whole files are not looked at. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: dict[_File, tuple[Clip, DataError]] = {}  # with the segment that failed of it
        self._read: set[_File] = set()
        self._costly: Counter[_File] = Counter()
        self._costly_code: dict[_File, str] = {}  # of the last costly failure

    def check(self, clip: Clip) -> None:
        """Raise the DataError of a segment that cannot be read or is not worth a try."""
        if clip.segment is None:
            return
        with self._lock:
            known = self._reasons.get(_file(clip))
            failed, is_read = self._costly[_file(clip)], _file(clip) in self._read
            code = self._costly_code.get(_file(clip), "")
        name = f"{printable_path(clip.path)}#{clip.segment}"
        if known is not None:
            first, error = known
            problem = error.message.removeprefix(f"{printable_path(first.path)}#{first.segment}")
            raise DataError(f"{name}{problem}", fix=error.fix, code=error.code)
        if failed >= (MOST_COSTLY_OF_READ if is_read else MOST_COSTLY):
            raise DataError(
                f"{name}: not tried, since the decoder {COSTLY_CODES[code]} {failed} other segments of this file"
                + ("" if is_read else " and none was read"),
                fix="convert the video again, or remove it; --retry begins with its last segments",
                code=code,
            )

    @contextmanager
    def noted(self, clip: Clip) -> Iterator[None]:
        """Note how reading the clip, which is the block, ends."""
        try:
            yield
        except DataError as error:
            if clip.segment is not None:
                self._note_failure(clip, error)
            raise
        if clip.segment is not None:
            with self._lock:
                self._read.add(_file(clip))

    def _note_failure(self, clip: Clip, error: DataError) -> None:
        with self._lock:
            if error.code in FILE_CODES:
                self._reasons.setdefault(_file(clip), (clip, error))
            elif error.code in COSTLY_CODES:
                self._costly[_file(clip)] += 1
                self._costly_code[_file(clip)] = error.code


def _file(clip: Clip) -> _File:
    return clip.path, clip.file_sha256
