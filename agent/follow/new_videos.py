"""Videos of a folder that are new and finished being written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...base.files import FileStamp
from ..extraction.clips import scan_clips
from .answered import AnsweredVideos

RETRY_S = (5.0, 600.0)  # pause after the first failure that may pass; doubles up to the second
MOST_TRIES = 5  # then the failure is the answer


class NewVideo(NamedTuple):
    name: str  # relative to the folder
    path: Path
    stamp: str
    tries: int  # so far


@dataclass
class _Waiting:
    stamp: str
    since: float
    tries: int = 0
    until: float = -math.inf  # not tried before


class NewVideos:
    """Looks at the folder, nested ones too, as ``extract`` does. A video is new until its content was answered.

    It is finished when size and time of change are the same in two scans at least ``settle_s`` apart, and it is not
    empty: a writer's empty file will get content.
    """

    def __init__(
        self, folder: Path, answered: AnsweredVideos, settle_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._answered, self._settle_s, self._now = folder, answered, settle_s, now
        self._waiting: dict[str, _Waiting] = {}

    def scan(self) -> Iterator[NewVideo]:
        """Yield the videos to answer, by name. Raises StorageError when the folder cannot be read."""
        found = scan_clips(self._folder, labelled=False).clips
        names = {each.name for each in found}
        self._waiting = {name: each for name, each in self._waiting.items() if name in names}
        for each in found:
            try:
                stamp = FileStamp.of(each.path)
            except OSError:  # gone since, or out of reach for now
                continue
            text = ":".join(map(str, stamp.content))
            if not stamp.size or self._answered.is_known(each.name, text):
                self._waiting.pop(each.name, None)
                continue
            now, waiting = self._now(), self._waiting.get(each.name)
            if waiting is None or waiting.stamp != text:
                self._waiting[each.name] = _Waiting(text, now)
            elif now - waiting.since >= self._settle_s and now >= waiting.until:
                yield NewVideo(each.name, each.path, text, waiting.tries)

    def try_later(self, video: NewVideo) -> None:
        """Leave a video for some time, longer after each failure."""
        waiting = self._waiting.get(video.name)
        if waiting is not None:
            waiting.tries += 1
            waiting.until = self._now() + min(RETRY_S[0] * 2 ** (waiting.tries - 1), RETRY_S[1])
