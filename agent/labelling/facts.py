"""Facts of a video that the page needs next to its name: how long it is, and when its frames are shown.

They are read by a decoder process, which meets the file instead of this process.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import msgspec
import numpy as np

from ...base.files import Stopped
from ...runtime.video.decoder import DecodeLimits, VideoDecoder
from .access import page_gone
from .book import LabelBook
from .folder_videos import FolderVideo

MAX_KEY_FRAMES = 5000  # that are listed
MAX_KEPT = 200  # videos whose facts are kept
READ_WITHIN_S = 60.0
ASK_EVERY_S = 0.25  # whether the page still waits
VARIABLE = 0.01  # a frame that is shown for 1 % longer than another is a variable rate…
ROUNDING_US = 2000  # …unless it is by no more than containers round


class FactsRecord(msgspec.Struct, frozen=True):
    """Answer of ``GET /api/video/ID/facts``."""

    duration_s: float
    fps: float  # mean
    frames: int
    variable: bool  # frames are not all shown for the same time
    exact: bool  # False: the container states no usable times, these are spread by its rate
    key_frames_s: list[float]  # at most 5000


class VideoFacts:
    """Reads facts one video at a time, and keeps those of the last ones."""

    def __init__(self, book: LabelBook) -> None:
        self._book = book
        self._turn = asyncio.Lock()  # requests wait here, and hold no thread
        self._kept: OrderedDict[tuple[str, int, int], FactsRecord] = OrderedDict()
        self._decoder: VideoDecoder | None = None

    async def of(self, video: FolderVideo, gone: Callable[[], Awaitable[bool]]) -> FactsRecord:
        """Return the facts of a video. ``gone`` tells that no one waits for them any more.

        Raises DataError for a video that cannot be read, Refused when the page has gone.
        """
        key = video.id, video.size, video.modified_ns
        async with self._turn:
            if key not in self._kept:
                if await gone():
                    raise page_gone()
                self._kept[key] = await self._read_while_asked(video, gone)
                self._book.durations[video.id] = self._kept[key].duration_s
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def close(self) -> None:
        """End the decoder process; a request in progress is given up."""
        if (decoder := self._decoder) is not None:
            self._decoder = None
            decoder.interrupt()
            decoder.close()

    async def _read_while_asked(self, video: FolderVideo, gone: Callable[[], Awaitable[bool]]) -> FactsRecord:
        reading = asyncio.create_task(asyncio.to_thread(self._read, video))
        while not reading.done():
            await asyncio.wait({reading}, timeout=ASK_EVERY_S)
            if not reading.done() and await gone() and (decoder := self._decoder) is not None:
                self._decoder = None  # one that was interrupted reads no more
                decoder.interrupt()
        try:
            return await reading
        except Stopped as error:
            raise page_gone() from error

    def _read(self, video: FolderVideo) -> FactsRecord:
        if (decoder := self._decoder) is None:
            limits = DecodeLimits(timeout_s=READ_WITHIN_S, inside=self._book.videos_of.root)
            decoder = self._decoder = VideoDecoder(None, limits)
        times = decoder.frame_times(self._book.videos_of.root / video.path)
        steps = np.diff(times.t_us)
        duration_s = times.end_us / 1e6
        return FactsRecord(
            duration_s=duration_s,
            fps=round(len(times.t_us) / duration_s, 3) if duration_s > 0 else 0.0,
            frames=len(times.t_us),
            variable=bool(len(steps) and np.ptp(steps) > max(VARIABLE * float(np.median(steps)), ROUNDING_US)),
            exact=bool(times.exact),
            key_frames_s=[float(at) / 1e6 for at in times.t_us[times.key_frames[:MAX_KEY_FRAMES]]],
        )
