"""Frames to calibrate int8 on and to compare whole chains on: seeded clips, or a folder of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, StorageError
from ...base.files import printable_path
from ...runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from ...runtime.keyframes import spread_indices
from ...runtime.video.client import VideoDecoder
from ...runtime.video.preprocessing import prepare_frames
from ..calibration import calibration_clips

Pixels = npt.NDArray[np.float32]
CALIBRATION_SEED, CHAIN_SEED = 20_260_201, 20_260_202  # scales are not judged on the clips that they came from
SEEDED_CLIPS = 8
MOST_CLIPS = 32  # of a folder, spread evenly over its names
SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
_DECODING = KeyframeRule(
    count=8,
    candidates=32,
    preprocessing=FramePreprocessing(size=32, fit="crop", filter="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3),
    feature_width=1,
    space="",
)


@dataclass(frozen=True)
class Footage:
    """``read(rule, frames)`` gives per clip its frames, evenly spread and in order: float32 [frames, 3, S, S]."""

    source: str  # "seeded" or "own clips"
    clips: int
    read: Callable[[FramePreprocessing, int], Iterator[Pixels]]


def seeded_footage(seed: int, clips: int = SEEDED_CLIPS) -> Footage:
    def read(rule: FramePreprocessing, frames: int) -> Iterator[Pixels]:
        for index in range(clips):
            made = calibration_clips(seed + 1000 * index, clips=1, frames=frames, size=rule.size, mean=0.0, std=1.0)
            rgb = made[0].swapaxes(0, 1)
            yield np.asarray((rgb - np.reshape(rule.mean, (3, 1, 1))) / np.reshape(rule.std, (3, 1, 1)), np.float32)

    return Footage("seeded", clips, read)


def own_footage(folder: Path) -> Footage:
    """At most MOST_CLIPS videos below ``folder``. Raises StorageError without the folder, DataError without videos."""
    if not folder.is_dir():
        raise StorageError(f"--calibration {printable_path(folder)}: no such folder", fix="give a folder of videos")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(
            f"--calibration {printable_path(folder)}: no videos in it",
            fix=f"put some of your clips there ({', '.join(sorted(SUFFIXES))}), or leave the option out",
        )
    chosen = [found[index] for index in spread_indices(len(found), min(MOST_CLIPS, len(found)))]

    def read(rule: FramePreprocessing, frames: int) -> Iterator[Pixels]:
        decoder = VideoDecoder(_DECODING)
        try:
            for path in chosen:
                candidates = decoder.candidates(path)
                rows = spread_indices(len(candidates.pixels), frames)
                yield prepare_frames(decoder.keyframes(candidates, rows).rgb, rule)
        finally:
            decoder.close()

    return Footage("own clips", len(chosen), read)
