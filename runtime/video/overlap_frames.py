"""Frames at the end of a segment that the next one, which begins before it ends, shows too.

Overlapping windows over a long video are asked for in order. With these frames each is decoded once, not once for every
window, and the decoder need not go back: in a video with one key frame it would go back to the beginning each time.
Runs in the decoder process only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ..clip_records import Segment
from .frame_buffer import frame_bytes
from .frames_in_order import Picture, Way


class OverlapFrames:
    """The frames of ``segment`` from ``from_us`` on; none, where they are more than ``most_bytes``."""

    def __init__(self, segment: Segment, from_us: int, most_bytes: int) -> None:
        self._segment, self._from_us, self._free_bytes = segment, from_us, most_bytes
        self._pictures: list[Picture] = []

    def offer(self, picture: Picture) -> None:
        """Keep the segment's next frame, if it is one of them."""
        if picture.t_us < self._from_us or self._free_bytes < 0:
            return
        self._free_bytes -= frame_bytes(picture.frame)
        self._pictures.append(picture)
        if self._free_bytes < 0:
            self._pictures = []

    def rest_of(self, segment: Segment) -> Segment | None:
        """Return the part of ``segment`` that is still to be decoded; None where these frames do not help."""
        own = self._segment
        if not self._pictures or not self._from_us <= segment.start_us < own.end_us < segment.end_us:
            return None
        return Segment(own.end_us, segment.end_us)

    def before(self, way: Way, segment: Segment) -> Way:
        """Return the way to a segment's frames: those that are kept, then those of ``way``, which leads to the rest."""
        kept = tuple(picture for picture in self._pictures if picture.t_us >= segment.start_us)

        def pictures() -> Iterator[Picture]:
            return itertools.chain(kept, way())

        return pictures


def no_frames() -> Iterator[Picture]:
    """The way to a rest that shows no frame."""
    return iter(())
