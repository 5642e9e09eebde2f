"""Frame times of a folder's videos, by a decoder process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ...runtime.clip_records import FrameTimes

if TYPE_CHECKING:
    from ...runtime.video.decoder import VideoDecoder


class VideoTimer:
    """Reads when the frames of videos are shown. The decoder's process starts with the first video; use in ``with``."""

    def __init__(self, folder: Path) -> None:
        """``folder``: nothing outside of it is opened."""
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._decoder: VideoDecoder | None = None

    def __enter__(self) -> VideoTimer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def frame_times(self, path: Path) -> FrameTimes:
        """Return the times of all frames. Raises DataError for a video that cannot be read."""
        from ...runtime.video.decoder import DecodeLimits, VideoDecoder

        if self._decoder is None:
            self._decoder = VideoDecoder(None, DecodeLimits(inside=self._folder.resolve()))
            self._stack.enter_context(contextlib.closing(self._decoder))
        return self._decoder.frame_times(path)
