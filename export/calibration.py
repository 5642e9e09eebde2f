"""Seeded clips to measure on: shapes that move over soft backgrounds, with a little noise.

They stand in for video wherever an export needs frames: batch-norm statistics of random weights,
and the frames of the parity check.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def calibration_clips(
    seed: int, *, clips: int, frames: int, size: int, mean: float, std: float
) -> npt.NDArray[np.float64]:
    """float64 [clips, 3, frames, size, size]: (value - mean) / std of RGB values in 0 to 1."""
    generator = np.random.Generator(np.random.PCG64(seed))
    made = np.stack([_clip(generator, frames, size) for _ in range(clips)])
    return (made - mean) / std


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
