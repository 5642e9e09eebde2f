"""Messages between the extractor and the decoder process, over base/child_process.py.

Payloads are raw array values. The file to decode travels as an open file descriptor with ``OpenClip``, so that the
decoder never sees a name.
"""

from __future__ import annotations

from ...base.channel import Message
from ..bundle.graph_records import Record
from .preprocessing import FrameInput

DECODER_BROKEN = "decoder_broken"  # the code of a refusal that is no clip's fault
MOST_FRAMES = 4_000_000  # of a video with segments: 37 hours at 30 a second; its index takes 100 MB
MAX_TEXT = 400  # characters of a message, a fix or a warning
FRAME_TIME_BYTES = 9  # a frame's time and its key frame flag, in ``FramesListed``


def printable_text(text: str) -> str:
    """Return what of a text may be sent and shown: printable letters, ``?`` for others, at most MAX_TEXT."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_TEXT])


class FramePart(Record, frozen=True):
    """Frames of the open clip for one network."""

    candidates: tuple[int, ...]  # numbers of candidates, in any order
    form: FrameInput | None  # None: uint8 [height, width, 3] each, at the video's own size


class OpenClip(Message, frozen=True):
    """Decode the clip in the attached descriptor; answer with ``Opened`` or ``DecodeRefused``."""

    candidates: int
    form: FrameInput  # of the candidates
    largest_frame: int  # pixels
    held_bytes: int  # decoded frames may be kept up to this
    cpu_s: int  # processor seconds that the clip may take
    segment: tuple[int, int] | None = None  # start and end in microseconds from the first frame; None: the whole file
    next_us: int | None = None  # where the segment begins that is asked for next, if before this one's end


class ReadFrames(Message, frozen=True):
    """Give frames of the open clip; answer with ``FramesRead`` or ``DecodeRefused``."""

    parts: tuple[FramePart, ...]
    cpu_s: int


class ListFrames(Message, frozen=True):
    """Give the presentation times of all frames of the attached video; answer with ``FramesListed``."""

    largest_frame: int
    cpu_s: int


class MakePiece(Message, frozen=True):
    """Encode a piece of the attached video for a browser; answer with ``PieceMade``."""

    start_us: int  # from the first frame
    end_us: int
    largest_frame: int
    cpu_s: int


class Ready(Message, frozen=True):
    """Sent once, before the first request is read: PyAV is loaded and the limits are set."""


class Opened(Message, frozen=True):
    """Payload: the candidates, in the form that was asked for."""

    t_s: tuple[float, ...]  # seconds from the clip's first frame, one per candidate
    frames: int  # of the clip
    warnings: tuple[str, ...]
    peak_kb: int  # largest resident memory of the decoder, KiB
    decoded: int = 0  # frames that were decoded for it


class FramesRead(Message, frozen=True):
    """Payload: the frames of each part, one after the other."""

    height: int  # pixels, of the video
    width: int
    prepare_ms: float  # spent on resizing and normalising
    peak_kb: int


class FramesListed(Message, frozen=True):
    """Payload: microseconds of each frame from the first, int64, then one byte per frame, 1 for a key frame."""

    frames: int
    exact: bool  # False: the container states no usable times; these are spread by its rate
    end_us: int  # where the last frame ends
    peak_kb: int


class PieceMade(Message, frozen=True):
    """Payload: a WebM file."""

    peak_kb: int


class DecodeRefused(Message, frozen=True):
    """The clip cannot be used."""

    code: str
    message: str  # follows the clip's name
    fix: str = ""  # empty: the usual one


Request = OpenClip | ReadFrames | ListFrames | MakePiece
Answer = Opened | FramesRead | FramesListed | PieceMade | DecodeRefused
