"""Messages between the extractor and the decoder process, over base/child_process.py.

Payloads are raw array values. The file to decode travels as an open file descriptor with ``OpenClip``, so that the
decoder never sees a name.
"""

from __future__ import annotations

from ...base.channel import Message
from ..bundle.manifest import FramePreprocessing

DECODER_BROKEN = "decoder_broken"  # the code of a refusal that is no clip's fault


class OpenClip(Message, frozen=True):
    """Decode the clip in the attached descriptor; answer with ``Opened`` or ``DecodeRefused``."""

    candidates: int
    preprocessing: FramePreprocessing
    largest_frame: int  # pixels
    held_bytes: int  # decoded frames may be kept up to this
    cpu_s: int  # processor seconds that the clip may take


class ReadFrames(Message, frozen=True):
    """Give frames of the open clip at full size; answer with ``FramesRead`` or ``DecodeRefused``."""

    candidates: tuple[int, ...]  # numbers of candidates, not decreasing
    cpu_s: int


class Ready(Message, frozen=True):
    """Sent once, before the first request is read: PyAV is loaded and the limits are set."""


class Opened(Message, frozen=True):
    """Payload: the candidates, float32 [N, 3, S, S], prepared for the keyframe graph."""

    t_s: tuple[float, ...]  # seconds from the first frame, one per candidate
    frames: int  # decoded in all
    warnings: tuple[str, ...]
    peak_kb: int  # largest resident memory of the decoder, KiB


class FramesRead(Message, frozen=True):
    """Payload: uint8 [count, height, width, 3], RGB."""

    count: int
    height: int
    width: int
    peak_kb: int


class DecodeRefused(Message, frozen=True):
    """The clip cannot be used."""

    code: str
    message: str  # follows the clip's name


Request = OpenClip | ReadFrames
Answer = Opened | FramesRead | DecodeRefused
