"""Answers of the decoder process, checked: a hostile file may control it, and it may then answer anything.

What reaches errors, logs, terminals and the store is one of the listed codes, short printable text, and numbers that a
video can have. Each check raises ValueError with a sentence that quotes nothing of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .decoder_messages import (
    DECODER_BROKEN,
    MAX_TEXT,
    Answer,
    DecodeRefused,
    FramesListed,
    FramesRead,
    Opened,
    PieceMade,
)

REFUSAL_CODES = frozenset(
    {"video_empty", "video_not_video", "video_no_stream", "video_unknown_codec", "video_damaged", "video_too_large"}
    | {"video_timeout", "segment_outside", "segment_empty", DECODER_BROKEN}
)
MAX_WARNINGS = 8
LARGEST = 1 << 62  # of any number: frames, microseconds, KiB
LONGEST_S = LARGEST / 1e6

A = TypeVar("A", Opened, FramesRead, FramesListed, PieceMade)


def checked_answer(answer: Answer, kind: type[A]) -> A:
    """Return an answer that is no refusal. Raises ValueError unless it is of ``kind`` and can be true."""
    if not isinstance(answer, kind):
        raise ValueError(f"{type(answer).__name__}, expected {kind.__name__}")
    counts = [answer.peak_kb]
    if isinstance(answer, Opened):
        _check_texts(answer.warnings, MAX_WARNINGS)
        if not 1 <= len(answer.t_s) <= answer.frames or not _increase(answer.t_s):
            raise ValueError("times of frames that cannot be")
        counts += [answer.frames, answer.decoded]
    elif isinstance(answer, FramesRead):
        counts += [answer.height, answer.width]
        if not 0 <= answer.prepare_ms < math.inf:
            raise ValueError("a duration that cannot be")
    elif isinstance(answer, FramesListed):
        counts += [answer.frames, answer.end_us]
    if not all(0 <= count <= LARGEST for count in counts):
        raise ValueError("numbers that cannot be")
    return answer


def checked_refusal(answer: DecodeRefused) -> DecodeRefused:
    """Return a refusal. Raises ValueError for another code than a listed one, and for text that cannot be shown."""
    if answer.code not in REFUSAL_CODES:
        raise ValueError("a refusal without a known code")
    _check_texts((answer.message, answer.fix), 2)
    return answer


def check_frame_times(t_us: npt.NDArray[np.int64], keys: npt.NDArray[np.uint8], end_us: int) -> None:
    """Raise ValueError unless the times, microseconds, can be those of a video's frames, and ``keys`` are flags."""
    if t_us[0] < 0 or (t_us[1:] < t_us[:-1]).any() or not t_us[-1] <= end_us or (keys > 1).any():
        raise ValueError("times of frames that cannot be")


def _increase(t_s: Sequence[float]) -> bool:
    """True for finite times that are not negative and do not decrease."""
    return 0.0 <= t_s[0] <= LONGEST_S and all(one <= later <= LONGEST_S for one, later in pairwise(t_s))


def _check_texts(texts: Sequence[str], most: int) -> None:
    if len(texts) > most or not all(len(text) <= MAX_TEXT and text.isprintable() for text in texts):
        raise ValueError("text that cannot be shown")
