"""A whole video file, decoded. Runs in the decoder process only.

Headers are not trusted: HMDB51's files count one frame too many, a cut-off AVI loses half of its frames without an
error. Frames are counted by decoding them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..keyframes import uniform_indices
from .decoded_frames import DecodedFrames, Survey
from .frame_buffer import FrameBuffer
from .video_file import USUAL_RATE, FrameShape, VideoFile, decoded_frames, promised_frames

if TYPE_CHECKING:
    import av

LOST_SHARE = 0.1  # of the promised frames: more missing than this is worth a warning


class DecodedClip(DecodedFrames):
    """A clip in an open file descriptor."""

    def __init__(self, fd: int, *, candidates: int, largest_frame: int, held_bytes: int) -> None:
        super().__init__()
        self._file = VideoFile(fd, largest_frame)
        self.survey = self._survey(candidates, held_bytes)
        self.candidates = uniform_indices(self.survey.frames, candidates)

    def _survey(self, candidates: int, held_bytes: int) -> Survey:
        container, stream = self._file.open()
        with container:
            promised = promised_frames(container, stream)
            buffer = FrameBuffer(held_bytes, likely=set(uniform_indices(promised, candidates).tolist()))
            times: list[float | None] = []
            damaged = 0
            for frame in decoded_frames(container, stream):
                if frame is None:
                    damaged += 1
                    continue
                self.decoded += 1
                self._shape = self._shape or FrameShape.of(frame)
                buffer.offer(len(times), frame)
                times.append(frame.time)
                damaged += bool(frame.is_corrupt)
            if not times:
                raise self._file.nothing_decoded_error(stream)
            rate = float(stream.average_rate or USUAL_RATE)
        self._held = buffer.frames
        return Survey(len(times), _seconds(times, rate), _warnings(len(times), promised, damaged))

    def _decoded_again(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        container, stream = self._file.open()
        with container:
            frames = (frame for frame in decoded_frames(container, stream) if frame is not None)
            for index, frame in enumerate(frames):
                self.decoded += 1
                if index in wanted:
                    yield index, frame
                if index >= max(wanted):
                    return


def _warnings(frames: int, promised: int, damaged: int) -> tuple[str, ...]:
    warnings = []
    if promised - frames > max(2, LOST_SHARE * promised):
        warnings.append(f"only {frames} of {promised} promised frames could be decoded: the file may be cut off")
    if damaged:
        warnings.append(f"damaged frames or packets: {damaged}")
    return tuple(warnings)


def _seconds(times: list[float | None], rate: float) -> npt.NDArray[np.float64]:
    start = times[0] or 0.0
    seconds = [index / rate if time is None else time - start for index, time in enumerate(times)]
    return np.maximum.accumulate(np.array(seconds, dtype=np.float64))
