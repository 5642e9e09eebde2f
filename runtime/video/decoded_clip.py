"""Decode one video file with PyAV. Runs in the decoder process only.

Headers are not trusted: HMDB51's files count one frame too many, a cut-off AVI loses half of its frames without an
error. Frames are counted by decoding them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ..keyframes import uniform_indices
from .decoder_messages import FramePart
from .preprocessing import FramePreparer, Frames

if TYPE_CHECKING:
    import av
    import av.container
    import av.video

# Containers by demuxer name. Formats that name other files (ffconcat, HLS, DASH) are left out: with any format
# allowed, a text file called x.mp4 makes ffmpeg open the files that it names.
ALLOWED_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg"
MAGIC_NUMBERS = (  # (offset, first bytes) of these containers
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (0, b"RIFF"),
    (0, b"\x1a\x45\xdf\xa3"),
    (0, b"\x00\x00\x01\xba"),
    (0, b"\x30\x26\xb2\x75"),
    (0, b"FLV"),
    (0, b"OggS"),
)
LOST_SHARE = 0.1  # of the promised frames: more missing than this is worth a warning
USUAL_RATE = 25.0  # frames per second, where a file gives none


@dataclass(frozen=True)
class Survey:
    """Result of one pass over a clip."""

    frames: int
    t_s: npt.NDArray[np.float64]  # [frames], seconds from the first, not decreasing
    warnings: tuple[str, ...]


class _Shape(NamedTuple):
    """Stored size and rotation of a frame."""

    width: int
    height: int
    rotation: float  # degrees


class DecodedClip:
    """A clip in an open file descriptor; decoded once, and a second time where frames were not kept."""

    def __init__(self, fd: int, *, candidates: int, largest_frame: int, held_bytes: int) -> None:
        self._fd = fd
        self._largest_frame = largest_frame
        self._shape: _Shape | None = None  # of the first frame; all frames are scaled to it
        self._held: dict[int, av.VideoFrame] = {}
        self.survey = self._survey(candidates, held_bytes)
        self.candidates = uniform_indices(self.survey.frames, candidates)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, upright."""
        assert self._shape is not None  # a clip without a frame is refused
        width, height, rotation = self._shape
        return (width, height) if round(rotation / 90) % 2 else (height, width)

    def read(self, parts: Sequence[FramePart]) -> tuple[list[Frames], float]:
        """The frames of each part, one part after the other, and the milliseconds spent on preparing them.

        A frame that several parts want is converted to RGB once.
        """
        preparers = [FramePreparer(part.form).prepare if part.form else _as_it_is for part in parts]
        wanted = sorted({number for part in parts for number in part.candidates})
        found: list[dict[int, Frames]] = [{} for _ in parts]
        spent_s = 0.0
        for number, rgb in zip(wanted, self.rgb(wanted), strict=True):
            began = time.perf_counter()
            for part, prepare, frames in zip(parts, preparers, found, strict=True):
                if number in part.candidates:
                    frames[number] = prepare(rgb)
            spent_s += time.perf_counter() - began
        of_parts = zip(parts, found, strict=True)
        return [frames[number] for part, frames in of_parts for number in part.candidates], spent_s * 1e3

    def rgb(self, numbers: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Candidates by number (not decreasing) as uint8 [H, W, 3], upright, all of the first frame's size."""
        wanted = self.candidates[list(numbers)]
        for index, frame in self._frames_at(set(wanted.tolist())):
            rgb = self._upright_rgb(frame)
            for _ in range(int((wanted == index).sum())):
                yield rgb

    def release_frames(self) -> None:
        """Drop the kept frames; later requests decode the clip again."""
        self._held = {}

    def _survey(self, candidates: int, held_bytes: int) -> Survey:
        container, stream = self._open()
        with container:
            promised = _promised_frames(container, stream)
            buffer = _FrameBuffer(held_bytes, likely=set(uniform_indices(promised, candidates).tolist()))
            times: list[float | None] = []
            damaged = 0
            for frame in _decoded(container, stream):
                if frame is None:
                    damaged += 1
                    continue
                self._shape = self._shape or _Shape(frame.width, frame.height, frame.rotation)
                buffer.offer(len(times), frame)
                times.append(frame.time)
                damaged += bool(frame.is_corrupt)
            if not times:
                raise self._nothing_decoded_error(stream)
            rate = float(stream.average_rate or USUAL_RATE)
        self._held = buffer.frames
        return Survey(len(times), _seconds(times, rate), _warnings(len(times), promised, damaged))

    def _frames_at(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        if wanted <= self._held.keys():
            yield from ((index, self._held[index]) for index in sorted(wanted))
            return
        container, stream = self._open()
        with container:
            frames = (frame for frame in _decoded(container, stream) if frame is not None)
            for index, frame in enumerate(frames):
                if index in wanted:
                    yield index, frame
                if index >= max(wanted):
                    return

    def _upright_rgb(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        shape = self._shape or _Shape(frame.width, frame.height, frame.rotation)
        rgb: Any = frame.reformat(shape.width, shape.height, format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, round(shape.rotation / 90) % 4))

    def _open(self) -> tuple[av.container.InputContainer, av.video.VideoStream]:
        """The container and its first real video stream, its frame size checked."""
        import av

        container = self._open_container({"max_pixels": str(self._largest_frame)})
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            container.close()
            raise DataError(
                "holds no video stream", fix="remove the file, or replace it by one with video", code="video_no_stream"
            )
        stream = streams[0]
        context: av.VideoCodecContext | None = stream.codec_context
        if context is None:
            container.close()
            raise DataError(
                "is in a codec that this ffmpeg does not know",
                fix="convert the video, for example to H.264 in MP4",
                code="video_unknown_codec",
            )
        width, height = context.width, context.height
        if width * height > self._largest_frame:
            container.close()
            raise _too_large_error(width, height, self._largest_frame)
        # One thread: error concealment in damaged files must not depend on timing.
        context.thread_count = 1
        context.options = {"max_pixels": str(self._largest_frame)}
        return container, stream

    def _open_container(self, options: dict[str, str]) -> av.container.InputContainer:
        import av
        import av.error

        allowed = {"format_whitelist": ALLOWED_FORMATS, "protocol_whitelist": "file", **options}
        try:
            # metadata_errors: titles in HMDB51 are not UTF-8.
            return av.open(f"/dev/fd/{self._fd}", options=allowed, metadata_errors="ignore")
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            raise self._not_opened_error() from error

    def _not_opened_error(self) -> DataError:
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            start = file.read(16)
        if not start:
            return DataError("is empty", fix="copy the video again from its source, or remove it", code="video_empty")
        if any(start[offset:].startswith(magic) for offset, magic in MAGIC_NUMBERS):
            return DataError(
                "begins like a video, but its index cannot be read: cut off or damaged",
                fix="copy the video again from its source, or remove it",
                code="video_damaged",
            )
        return DataError(
            f"is not a video in one of the formats {ALLOWED_FORMATS}",
            fix="convert the video, for example to H.264 in MP4, or remove the file",
            code="video_not_video",
        )

    def _nothing_decoded_error(self, stream: av.video.VideoStream) -> DataError:
        """The error for no frame at all: damaged, or too large for a codec that reports no size."""
        if not stream.codec_context.width:
            with self._open_container({}) as container:
                reopened = next(other for other in container.streams.video if other.index == stream.index)
                if reopened.width * reopened.height > self._largest_frame:
                    return _too_large_error(reopened.width, reopened.height, self._largest_frame)
        return DataError(
            "holds a video stream of which no frame can be decoded",
            fix="copy the video again from its source, or remove it",
            code="video_damaged",
        )


class _FrameBuffer:
    """Decoded frames, kept until ``free_bytes`` are used, then only those of ``likely``.

    ``likely`` are the candidates if the header's frame count is right. Missing frames are decoded a second time, so a
    long clip takes more time and not more memory.
    """

    def __init__(self, free_bytes: int, *, likely: set[int]) -> None:
        self.frames: dict[int, av.VideoFrame] = {}
        self._free_bytes = free_bytes
        self._likely = likely
        self._full = False

    def offer(self, index: int, frame: av.VideoFrame) -> None:
        size = _frame_bytes(frame)
        if not self._full and size > self._free_bytes:
            self._full = True
            for index_to_drop in self.frames.keys() - self._likely:
                self._free_bytes += _frame_bytes(self.frames.pop(index_to_drop))
        if size <= self._free_bytes and (not self._full or index in self._likely):
            self.frames[index] = frame
            self._free_bytes -= size


def _as_it_is(rgb: npt.NDArray[np.uint8]) -> Frames:
    return rgb


def _decoded(container: av.container.InputContainer, stream: av.video.VideoStream) -> Iterator[av.VideoFrame | None]:
    """Every frame that can be decoded, in display order; None in place of a damaged packet."""
    import av.error

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)  # the last one is empty and flushes the decoder
        except StopIteration:
            return
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            packet = None  # the container is damaged from here on
        try:
            yield from packet.decode() if packet is not None else stream.decode(None)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            yield None
        if packet is None:
            yield None
            return


def _promised_frames(container: av.container.InputContainer, stream: av.video.VideoStream) -> int:
    """The header's number of frames, by count or else by length; 0 when it has neither."""
    if stream.frames:
        return int(stream.frames)
    if container.duration and stream.average_rate:
        return round(container.duration / 1e6 * float(stream.average_rate))
    return 0


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


def _frame_bytes(frame: av.VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)


def _too_large_error(width: int, height: int, largest: int) -> DataError:
    return DataError(
        f"has frames of {width}x{height}, at most {largest} pixels are allowed",
        fix="scale the video down",
        code="video_too_large",
    )
