"""Small pictures of a clip's frames, for the reports."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, MissingExtra
from ...runtime.bundle.manifest import KeyframeRule
from ...runtime.keyframes import uniform_indices
from ...runtime.video.decoder import VideoDecoder
from ...runtime.video.video_file import ALLOWED_FORMATS


def keyframe_strip(video: Path, rule: KeyframeRule, *, pictures: int = 8, height: int = 120) -> tuple[bytes, ...]:
    """At most ``pictures`` evenly spread frames of ``video`` in time order, as JPEG files ``height`` pixels high.

    Decoded as for extraction; ``rule`` is the bundle's and sets the number of candidate frames.
    Raises DataError when the clip cannot be read, MissingExtra without PyAV or Pillow.
    """
    with VideoDecoder(rule) as decoder:
        candidates = decoder.candidates(video)
        chosen = uniform_indices(len(candidates.pixels), pictures)
        frames = decoder.keyframes(candidates, chosen).rgb
    return tuple(_jpeg(frame, height) for frame in frames)


def _jpeg(frame: npt.NDArray[np.uint8], height: int) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", extra="agent") from error
    picture = Image.fromarray(frame)
    width = max(1, round(picture.width * height / picture.height))
    file = io.BytesIO()
    picture.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=85)
    return file.getvalue()


def frames_at(video: Path, times_s: Sequence[float], *, height: int = 120) -> tuple[bytes, ...]:
    """The frames of ``video`` shown at ``times_s`` (seconds from clip start), each a JPEG ``height`` pixels high.

    Raises DataError when the clip cannot be read, MissingExtra without PyAV or Pillow.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", extra="agent") from error
    wanted = sorted(times_s)
    found: list[npt.NDArray[np.uint8]] = []
    options = {"format_whitelist": ALLOWED_FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(str(video), metadata_errors="ignore", container_options=options) as container:
            first: float | None = None
            for frame in container.decode(video=0):
                first = frame.time if first is None else first
                while len(found) < len(wanted) and (frame.time or 0.0) - (first or 0.0) >= wanted[len(found)] - 1e-3:
                    found.append(np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8))
                if len(found) == len(wanted):
                    break
    except av.FFmpegError as error:
        raise DataError(
            f"{video} cannot be decoded: {error}", fix="remove the video, or convert it again", code="video_damaged"
        ) from error
    return tuple(_jpeg(frame, height) for frame in found)
