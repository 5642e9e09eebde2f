"""Clips to measure on: seeded ones, or the user's own.

Seeded clips show shapes that move over soft backgrounds, with a little noise. They replace video wherever an
export needs frames: batch-norm statistics of random weights, the parity check, int8 calibration and the
comparison of whole chains. The last two can use a folder of the user's own clips instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, StorageError
from ...base.files import printable_path
from ...runtime.bundle.manifest import FramePreprocessing, KeyframeRule
from ...runtime.keyframes import spread_indices
from ...runtime.video import VIDEO_SUFFIXES, find_video_files
from ...runtime.video.decoder import VideoDecoder
from ...runtime.video.preprocessing import FrameInput, frames_for


def calibration_clips(
    seed: int, *, clips: int, frames: int, size: int, mean: float, std: float
) -> npt.NDArray[np.float64]:
    """float64 [clips, 3, frames, size, size]: (value - mean) / std of RGB values in 0 to 1."""
    generator = np.random.Generator(np.random.PCG64(seed))
    made = np.stack([_clip(generator, frames, size) for _ in range(clips)])
    return (made - mean) / std


def seeded_frames(seed: int, *, clips: int, frames: int, size: int) -> npt.NDArray[np.uint8]:
    """The same clips as RGB bytes: uint8 [clips, frames, size, size, 3]."""
    made = calibration_clips(seed, clips=clips, frames=frames, size=size, mean=0.0, std=1.0)
    return np.ascontiguousarray((made * 255).round().astype(np.uint8).transpose(0, 2, 3, 4, 1))


def _clip(generator: np.random.Generator, frames: int, size: int) -> npt.NDArray[np.float64]:
    """float64 [3, frames, size, size], values in 0 to 1."""
    background = _soft(generator.uniform(0, 1, (3, 4, 4)), size)
    video = np.repeat(background[:, None], frames, axis=1)
    y, x = np.mgrid[0:size, 0:size] / size
    for _ in range(int(generator.integers(1, 4))):
        colour = generator.uniform(0, 1, 3)
        centre, speed = generator.uniform(0.2, 0.8, 2), generator.uniform(-0.08, 0.08, 2)
        radius, round_shape = generator.uniform(0.08, 0.25), bool(generator.integers(2))
        for index in range(frames):
            dy, dx = y - (centre[0] + speed[0] * index) % 1.0, x - (centre[1] + speed[1] * index) % 1.0
            inside = dy**2 + dx**2 < radius**2 if round_shape else np.maximum(abs(dy), abs(dx)) < radius
            video[:, index, inside] = colour[:, None]
    return np.asarray(np.clip(video + generator.uniform(-0.04, 0.04, video.shape), 0, 1))


def _soft(coarse: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """[3, n, n] -> [3, size, size], linearly in between."""
    n = coarse.shape[-1]
    at = np.linspace(0, n - 1, size)
    low = np.minimum(at.astype(int), n - 2)
    part = at - low
    rows = coarse[:, low] * (1 - part)[:, None] + coarse[:, low + 1] * part[:, None]
    return np.asarray(rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part)


Rgb = npt.NDArray[np.uint8]
# Scales are not measured on the clips that they were chosen on, nor is what stays in higher precision.
CALIBRATION_SEED, CHAIN_SEED, HELD_OUT_SEED = 20_260_201, 20_260_202, 20_260_203
SEEDED_CLIPS = 8
FEW_SEEDED_CLIPS = 4  # held out; and calibrated on next to own clips, for the comparison with PyTorch draws its frames
MAX_CLIPS = 32  # of a folder, spread evenly over its names
HELD_OUT_EVERY = 4  # of own clips, one of so many is held out
_DECODING = KeyframeRule(
    count=8,
    candidates=32,
    preprocessing=FramePreprocessing(size=32, fit="crop", filter="bilinear-bytes", mean=(0.0,) * 3, std=(1.0,) * 3),
    feature_width=1,
    space="",
)


@dataclass(frozen=True)
class CalibrationClips:
    """Clips as a source of frames.

    ``read(rule, frames)`` gives per clip its frames, evenly spread and in order: uint8 [frames, S, S, 3].
    """

    source: str  # "seeded" or "own clips"
    clips: int
    read: Callable[[FramePreprocessing, int], Iterator[Rgb]]


@dataclass(frozen=True)
class CalibrationSets:
    """Clips that int8 is calibrated on, and those that it is then judged on."""

    calibration: CalibrationClips
    held_out: CalibrationClips


def calibration_sets(own: CalibrationClips | None) -> CalibrationSets:
    """Of ``own`` clips one of four is held out (of fewer than four none: seeded ones judge); None: seeded clips."""
    few = seeded_clips(HELD_OUT_SEED, FEW_SEEDED_CLIPS)
    if own is None:
        return CalibrationSets(seeded_clips(CALIBRATION_SEED), few)
    seeded = seeded_clips(CALIBRATION_SEED, FEW_SEEDED_CLIPS)
    if own.clips < HELD_OUT_EVERY:
        return CalibrationSets(_joined(own, seeded), few)
    held_out = range(HELD_OUT_EVERY - 1, own.clips, HELD_OUT_EVERY)
    judging = _joined(_some(own, held_out), few)
    return CalibrationSets(
        _joined(_some(own, sorted(set(range(own.clips)) - set(held_out))), seeded),
        dataclasses.replace(judging, clips=judging.clips + few.clips),
    )


def _some(clips: CalibrationClips, indices: Collection[int]) -> CalibrationClips:
    def read(rule: FramePreprocessing, frames: int) -> Iterator[Rgb]:
        return (rgb for index, rgb in enumerate(clips.read(rule, frames)) if index in indices)

    return CalibrationClips(clips.source, len(indices), read)


def _joined(own: CalibrationClips, seeded: CalibrationClips) -> CalibrationClips:
    """Both, under the name and count of ``own``."""

    def read(rule: FramePreprocessing, frames: int) -> Iterator[Rgb]:
        yield from own.read(rule, frames)
        yield from seeded.read(rule, frames)

    return CalibrationClips(own.source, own.clips, read)


def seeded_clips(seed: int, clips: int = SEEDED_CLIPS) -> CalibrationClips:
    def read(rule: FramePreprocessing, frames: int) -> Iterator[Rgb]:
        for index in range(clips):
            yield seeded_frames(seed + 1000 * index, clips=1, frames=frames, size=rule.size)[0]

    return CalibrationClips("seeded", clips, read)


def folder_clips(folder: Path) -> CalibrationClips:
    """At most MAX_CLIPS videos below ``folder``. Raises StorageError without the folder, DataError without videos."""
    if not folder.is_dir():
        raise StorageError(f"--calibration {printable_path(folder)}: no such folder", fix="give a folder of videos")
    found = find_video_files(folder)
    if not found:
        raise DataError(
            f"--calibration {printable_path(folder)}: no videos in it",
            fix=f"put some of your clips there ({', '.join(sorted(VIDEO_SUFFIXES))}), or leave the option out",
        )
    chosen = [found[index] for index in spread_indices(len(found), min(MAX_CLIPS, len(found)))]

    def read(rule: FramePreprocessing, frames: int) -> Iterator[Rgb]:
        decoder = VideoDecoder(_DECODING)
        try:
            for path in chosen:
                candidates = decoder.candidates(path)
                rows = spread_indices(len(candidates.pixels), frames)
                yield frames_for(decoder.keyframes(candidates, rows).rgb, FrameInput(rule, whole_bytes=True))
        finally:
            decoder.close()

    return CalibrationClips("own clips", len(chosen), read)
