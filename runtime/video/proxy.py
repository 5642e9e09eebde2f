"""A piece of a video as a browser plays it: WebM with VP8, small and without sound.

Browsers play little of the video that laboratories have (AVI with MPEG-4, WMV). A piece is decoded and encoded by the
decoder process, under its limits; nothing is written to disk. Its presentation times are those of the video, counted
from the first frame, so that pieces can be put one after the other (MediaSource) and a segment's ends read off.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..clip_records import Segment
from .decoder import DecodeLimits, VideoDecoder
from .frames_from_key import NotAsIndexed
from .frames_in_order import Way
from .open_video import OpenVideo
from .video_file import FrameShape

if TYPE_CHECKING:
    import av

LONGEST_SIDE = 640  # pixels
LARGEST_RATE = 31  # frames per second; of faster video some are left out
BIT_RATE = 1_200_000
ENCODER = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0"}
MILLISECONDS = Fraction(1, 1000)


def make_proxy(path: Path, *, start_s: float, seconds: float, limits: DecodeLimits | None = None) -> bytes:
    """The piece of ``path`` from ``start_s`` seconds on, at most ``seconds`` long, as a WebM file.

    A caller that wants several pieces keeps a ``VideoDecoder`` and calls its ``proxy``: the file stays open. Raises
    as that.
    """
    with VideoDecoder(None, limits) as decoder:
        return decoder.proxy(path, start_s=start_s, seconds=seconds)


def encode_piece(video: OpenVideo, segment: Segment) -> bytes:
    """A segment of an open video as a WebM file. In the decoder process only. Raises DataError as ``VideoDecoder``."""
    for way in video.ways(segment):
        try:
            piece = _encoded(way, video.rate)
        except NotAsIndexed:
            continue
        if piece:
            return piece
    raise video.nothing_shown_error(segment)


def _encoded(way: Way, rate: float) -> bytes:
    """The frames that ``way`` gives, encoded; empty without a frame. ``rate``: of the video, frames per second."""
    import av

    target, shape, latest_ms = io.BytesIO(), None, -1000
    with av.open(target, "w", format="webm") as file:
        stream = file.add_stream("libvpx", rate=30)
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = stream.time_base = MILLISECONDS
        stream.codec_context.bit_rate = BIT_RATE
        stream.codec_context.gop_size = 60
        stream.codec_context.options = ENCODER
        stream.pix_fmt = "yuv420p"
        for picture in way():
            milliseconds = round(picture.t_s * 1000)
            if rate > LARGEST_RATE and milliseconds - latest_ms < 1000 / LARGEST_RATE:
                continue
            milliseconds = max(milliseconds, latest_ms + 1)
            if shape is None:
                shape = FrameShape.of(picture.frame)
                stream.height, stream.width = _small(*shape.upright)
            frame = _scaled(picture.frame, shape, stream.height, stream.width)
            frame.pts, frame.time_base = milliseconds, MILLISECONDS
            latest_ms = milliseconds
            file.mux(stream.encode(frame))
        if shape is None:
            return b""
        file.mux(stream.encode())
    return target.getvalue()


def _small(height: int, width: int) -> tuple[int, int]:
    """Even height and width, the longer at most ``LONGEST_SIDE``."""
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def _scaled(frame: av.VideoFrame, shape: FrameShape, height: int, width: int) -> av.VideoFrame:
    """The frame upright, of this size."""
    import av

    turns = round(shape.rotation / 90) % 4
    if not turns:
        return frame.reformat(width, height, format="yuv420p", threads=1)
    before = (height, width) if turns % 2 else (width, height)
    rgb: Any = frame.reformat(*before, format="rgb24", threads=1).to_ndarray()
    upright = np.ascontiguousarray(np.rot90(rgb, turns), dtype=np.uint8)
    return av.VideoFrame.from_ndarray(upright, format="rgb24").reformat(format="yuv420p", threads=1)
