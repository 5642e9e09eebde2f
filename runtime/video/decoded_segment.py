"""A segment of a video, decoded. Runs in the decoder process only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...base.errors import DataError
from ..clip_records import Segment
from ..keyframes import uniform_indices
from .decoded_frames import DecodedFrames, Survey
from .decoder_messages import OpenClip
from .frame_buffer import FrameBuffer
from .frames_from_key import NotAsIndexed
from .frames_in_order import Way
from .open_video import OpenVideo
from .overlap_frames import OverlapFrames
from .preprocessing import FrameInput, FramePreparer, Frames
from .video_file import FrameShape

if TYPE_CHECKING:
    import av

END_MARGIN_US = 1000  # a segment may end this much after the video without a warning: people's tools round


class DecodedSegment(DecodedFrames):
    """A segment of an open video."""

    def __init__(self, video: OpenVideo, segment: Segment, request: OpenClip) -> None:
        super().__init__()
        self._video = video
        self._segment = segment
        self._form = request.form
        self._next_us = request.next_us
        self._way: Way
        self._small: dict[int, Frames] = {}  # likely candidates, prepared
        likely = uniform_indices(video.expected(segment), request.candidates)
        self.survey = self._decode(set(likely.tolist()), request.held_bytes)
        self.candidates = uniform_indices(self.survey.frames, request.candidates)

    def candidate_frames(self, form: FrameInput) -> list[Frames]:
        """The candidates in ``form``, as they were prepared while the segment was decoded."""
        if self._form == form and all(number in self._small for number in self.candidates.tolist()):
            return [self._small[number] for number in self.candidates.tolist()]
        return super().candidate_frames(form)

    def _decode(self, likely: set[int], held_bytes: int) -> Survey:
        """Take the first way that gives what the index promises."""
        for way in self._video.ways(self._segment):
            damaged = self._video.damaged
            try:
                times = self._collect(way, likely, held_bytes)
            except NotAsIndexed:
                continue
            self._way = way
            break
        self._video.share(self._shared)
        self.decoded = self._video.newly_decoded()
        lost = self._video.damaged - damaged
        if not times and lost:
            raise DataError(
                f"cannot be decoded: damaged frames or packets: {lost}",
                fix="copy the video again from its source, or remove this row from labels.csv",
                code="video_damaged",
            )
        if not times:
            raise self._video.nothing_shown_error(self._segment)
        t_s = np.array(times, np.float64)
        return Survey(len(times), t_s - t_s[0], self._warnings(lost))

    def _collect(self, way: Way, likely: set[int], held_bytes: int) -> list[float]:
        """Decode the segment, and keep what fits: its times in seconds."""
        buffer = FrameBuffer(held_bytes, likely=likely)
        from_us = self._segment.end_us if self._next_us is None else self._next_us
        self._shared = OverlapFrames(self._segment, from_us, held_bytes)
        preparer = FramePreparer(self._form)
        self._small, self._shape, times = {}, None, list[float]()
        for picture in way():
            number = len(times)
            self._shape = self._shape or FrameShape.of(picture.frame)
            if number in likely:
                self._small[number] = preparer.prepare(self._shape.rgb(picture.frame))
            buffer.offer(number, picture.frame)
            self._shared.offer(picture)
            times.append(picture.t_s)
        self._held = buffer.frames
        return times

    def _warnings(self, damaged: int) -> tuple[str, ...]:
        warnings, end_us = [], self._video.end_us
        if end_us is not None and self._segment.end_us > end_us + END_MARGIN_US:
            warnings.append(f"ends at {self._segment.end_s:g} s, the video at {end_us / 1e6:g} s: cut there")
        if damaged:
            warnings.append(f"damaged frames or packets: {damaged}")
        return tuple(warnings)

    def _decoded_again(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        try:
            for index, picture in enumerate(self._way()):
                if index in wanted:
                    yield index, picture.frame
                if index >= max(wanted):
                    break
        except NotAsIndexed:
            raise DataError(
                "gave other frames when it was read again",
                fix="run the command again when nothing writes to the file",
                code="video_damaged",
            ) from None
        self.decoded += self._video.newly_decoded()
