"""A segment of a video, decoded. Runs in the decoder process only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..clip_records import Segment
from ..keyframes import uniform_indices
from .decoded_clip import Survey
from .frame_buffer import FrameBuffer
from .open_video import OpenVideo
from .preprocessing import Rgb
from .video_file import FrameShape

if TYPE_CHECKING:
    import av

END_MARGIN_US = 1000  # a segment may end this much after the video without a warning: people's tools round


class DecodedSegment:
    """A segment of an open video; decoded once, and a second time where frames were not kept."""

    def __init__(self, video: OpenVideo, segment: Segment, *, candidates: int, held_bytes: int) -> None:
        self._video = video
        self._segment = segment
        self._shape: FrameShape | None = None
        self._held: dict[int, av.VideoFrame] = {}
        self.decoded = 0
        self.survey = self._survey(candidates, held_bytes)
        self.candidates = uniform_indices(self.survey.frames, candidates)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, upright."""
        assert self._shape is not None  # a segment without a frame is refused
        return self._shape.upright

    def rgb(self, numbers: Sequence[int]) -> Iterator[Rgb]:
        """Candidates by number (not decreasing) as uint8 [H, W, 3], upright, all of the first frame's size."""
        wanted = self.candidates[list(numbers)]
        for index, frame in self._frames_at(set(wanted.tolist())):
            rgb = (self._shape or FrameShape.of(frame)).rgb(frame)
            for _ in range(int((wanted == index).sum())):
                yield rgb

    def release_frames(self) -> None:
        """Drop the kept frames; later requests decode the segment again."""
        self._held = {}

    def _survey(self, candidates: int, held_bytes: int) -> Survey:
        likely = uniform_indices(self._video.expected(self._segment), candidates)
        buffer = FrameBuffer(held_bytes, likely=set(likely.tolist()))
        times: list[float] = []
        before = self._video.decoded
        for picture in self._video.pictures(self._segment):
            self._shape = self._shape or FrameShape.of(picture.frame)
            buffer.offer(len(times), picture.frame)
            times.append(picture.t_s)
        self.decoded += self._video.decoded - before
        if not times:
            raise self._video.nothing_error(self._segment)
        self._held = buffer.frames
        warnings = []
        if self._segment.end_us > self._video.end_us + END_MARGIN_US and self._video.end_us > times[-1] * 1e6:
            warnings.append(
                f"the segment ends at {self._segment.end_s:g} s, the video at {self._video.end_us / 1e6:g} s: cut there"
            )
        t_s = np.array(times, np.float64)
        return Survey(len(times), t_s - t_s[0], tuple(warnings))

    def _frames_at(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        if wanted <= self._held.keys():
            yield from ((index, self._held[index]) for index in sorted(wanted))
            return
        for index, picture in enumerate(self._video.pictures(self._segment)):
            if index in wanted:
                yield index, picture.frame
            if index >= max(wanted):
                return
