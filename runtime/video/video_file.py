"""Open an untrusted video file with PyAV, and decode it packet by packet. In a child process with limits only."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError

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
USUAL_RATE = 25.0  # frames per second, where a file gives none


class FrameShape(NamedTuple):
    """Stored size and rotation of a frame."""

    width: int
    height: int
    rotation: float  # degrees

    @classmethod
    def of(cls, frame: av.VideoFrame) -> FrameShape:
        return cls(frame.width, frame.height, frame.rotation)

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the frames, upright."""
        return (self.width, self.height) if round(self.rotation / 90) % 2 else (self.height, self.width)

    def rgb(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """A frame as uint8 [H, W, 3], upright, scaled to this shape."""
        rgb: Any = frame.reformat(self.width, self.height, format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, round(self.rotation / 90) % 4))


class VideoFile:
    """A video file in an open descriptor. Raises DataError with a code of decoder.py."""

    def __init__(self, fd: int, largest_frame: int) -> None:
        self._fd = fd
        self._largest_frame = largest_frame

    def open(self) -> tuple[av.container.InputContainer, av.video.VideoStream]:
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

    def nothing_decoded_error(self, stream: av.video.VideoStream) -> DataError:
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


def decoded_frames(
    container: av.container.InputContainer, stream: av.video.VideoStream
) -> Iterator[av.VideoFrame | None]:
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


def demuxed(
    container: av.container.InputContainer, stream: av.video.VideoStream
) -> Iterator[av.Packet[av.video.VideoStream]]:
    """The stream's packets, as far as the container can be read."""
    import av.error

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            return  # the container is damaged from here on
        if not packet.size and packet.pts is None and packet.dts is None:
            return  # the one that flushes a decoder
        yield packet


def ticks_us(ticks: int, base: Fraction) -> int:
    """Ticks of a time base (seconds) in microseconds, rounded, halves up."""
    return (ticks * 2_000_000 * base.numerator + base.denominator) // (2 * base.denominator)


def promised_frames(container: av.container.InputContainer, stream: av.video.VideoStream) -> int:
    """The header's number of frames, by count or else by length; 0 when it has neither."""
    if stream.frames:
        return int(stream.frames)
    if container.duration and stream.average_rate:
        return round(container.duration / 1e6 * float(stream.average_rate))
    return 0


def _too_large_error(width: int, height: int, largest: int) -> DataError:
    return DataError(
        f"has frames of {width}x{height}, at most {largest} pixels are allowed",
        fix="scale the video down",
        code="video_too_large",
    )
