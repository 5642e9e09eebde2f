"""Small pictures of a clip's frames, for pages. Videos are decoded in the decoder process alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, MissingExtra
from ..bundle.manifest import FramePreprocessing, KeyframeRule
from ..clip_records import Segment
from ..keyframes import uniform_indices
from .decoder import VideoDecoder

# For a single frame, which is taken at its full size: the small one is not used.
ONE_FRAME = KeyframeRule(
    count=1,
    candidates=1,
    preprocessing=FramePreprocessing(8, "stretch", "bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    feature_width=1,
    space="none",
)


def keyframe_strip(
    video: Path, rule: KeyframeRule, *, segment: Segment | None = None, pictures: int = 8, height: int = 120
) -> tuple[bytes, ...]:
    """At most ``pictures`` evenly spread frames of ``video`` in time order, as JPEG files ``height`` pixels high.

    Decoded as for extraction; ``rule`` is the bundle's and sets the number of candidate frames.
    Raises DataError when the clip cannot be read, MissingExtra without PyAV or Pillow.
    """
    with VideoDecoder(rule) as decoder:
        candidates = decoder.candidates(video, segment)
        chosen = uniform_indices(len(candidates.pixels), pictures)
        frames = decoder.keyframes(candidates, chosen).rgb
    return tuple(_jpeg(frame, height) for frame in frames)


def frames_at(
    video: Path, times_s: Sequence[float], *, segment: Segment | None = None, height: int = 120
) -> tuple[bytes, ...]:
    """The frames shown at ``times_s``, in time order, each a JPEG ``height`` pixels high.

    ``times_s``: seconds from the clip's first frame; of ``segment`` where the clip is one. Each frame is decoded as a
    segment of its own, so at most one group of pictures is decoded for it. A time at which no frame is found has no
    picture: of some files times are known nearly.
    Raises DataError when the clip cannot be read, MissingExtra without PyAV or Pillow.
    """
    with VideoDecoder(ONE_FRAME) as decoder:
        shown_us = decoder.frame_times(video).t_us
        first = int(np.searchsorted(shown_us, segment.start_us)) if segment else 0
        if first == len(shown_us):
            decoder.candidates(video, segment)  # raises the error that names the segment
        first_us = int(shown_us[first])
        pictures = []
        for time_s in sorted(times_s):
            nearest = int(np.abs(shown_us - (first_us + time_s * 1e6)).argmin())
            try:
                candidates = decoder.candidates(video, _around(shown_us, nearest))
            except DataError as error:
                if error.code in ("segment_empty", "segment_outside"):
                    continue
                raise
            pictures.append(_jpeg(decoder.keyframes(candidates, np.zeros(1, np.int64)).rgb[0], height))
    return tuple(pictures)


def _around(shown_us: npt.NDArray[np.int64], number: int) -> Segment:
    """The time that is nearer to frame ``number`` than to the others; ``shown_us``: of all frames, increasing."""
    time_us = int(shown_us[number])
    before = int(shown_us[number - 1]) if number else time_us
    after = int(shown_us[number + 1]) if number + 1 < len(shown_us) else 2 * time_us - before
    return Segment((before + time_us) // 2, max((time_us + after) // 2, time_us + 1))


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
