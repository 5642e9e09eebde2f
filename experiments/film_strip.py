"""A few small pictures of a clip, for the report."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..base.errors import MissingExtra
from ..runtime.keyframes import uniform_indices
from ..runtime.manifest import KeyframeRule
from ..runtime.video import VideoDecoder


def film_strip(video: Path, rule: KeyframeRule, *, pictures: int = 8, height: int = 120) -> tuple[bytes, ...]:
    """At most ``pictures`` frames of ``video`` in time order, evenly spread, each a JPEG file ``height`` pixels high.

    Decoded as for extraction (``rule``: the bundle's, says how many candidate frames there are).
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
