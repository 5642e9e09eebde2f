"""From RGB frames to a network's input, exactly as the manifest's FramePreprocessing defines it.

``bicubic`` and ``bilinear-pillow`` give the bytes of Pillow's antialiased filters, and after
normalisation those of Hugging Face's ``BlipImageProcessorPil``. ``bilinear`` is PyTorch's
``interpolate(mode="bilinear", align_corners=False, antialias=False)`` as pytorchvideo's
``ShortSideScale`` calls it; ``bilinear-bytes`` is the same rounded to whole numbers, as torchvision's
video presets resize byte tensors. ``crop`` is the centre crop of torchvision.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, MissingExtra
from ..bundle.manifest import FramePreprocessing

Rgb = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.float32]
MAX_RESIZED_PIXELS = 1 << 25  # pixels; a frame of 100,000 × 1 would take gigabytes


def prepare_frames(rgb: Rgb, rule: FramePreprocessing) -> Pixels:
    """Resize, crop and normalise: uint8 [N, H, W, 3] -> float32 [N, 3, size, size].

    Raises DataError (``video_too_large``) for a frame so long and thin that its short side cannot
    be resized to ``size``.
    """
    height, width = resized_size(rgb.shape[1], rgb.shape[2], rule)
    if height * width > MAX_RESIZED_PIXELS:
        raise DataError(
            f"frames of {rgb.shape[2]}x{rgb.shape[1]} pixels are too long and thin to resize to {rule.size} pixels",
            fix="crop the video, or remove it",
            code="video_too_large",
        )
    if rule.filter in ("bicubic", "bilinear-pillow"):
        return _normalise_bytes(_resize_pillow(rgb, height, width, rule), rule)
    values = _resize_bilinear(rgb, height, width, rule.size)
    return _normalise_values(np.round(values) if rule.filter == "bilinear-bytes" else values, rule)


def resized_size(height: int, width: int, rule: FramePreprocessing) -> tuple[int, int]:
    """Height and width before the crop; ``crop`` brings the short side to size, the long one rounded down."""
    if rule.resized is not None:
        return rule.resized
    if rule.fit == "stretch":
        return rule.size, rule.size
    if width < height:
        return math.floor(height / width * rule.size), rule.size
    return rule.size, math.floor(width / height * rule.size)


def _crop_start(length: int, size: int) -> int:
    return round((length - size) / 2.0)  # torchvision's rounding: halves to even


def _resize_pillow(rgb: Rgb, height: int, width: int, rule: FramePreprocessing) -> Rgb:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", extra="agent") from error

    top, left = _crop_start(height, rule.size), _crop_start(width, rule.size)
    box = (left, top, left + rule.size, top + rule.size)
    method = Image.Resampling.BICUBIC if rule.filter == "bicubic" else Image.Resampling.BILINEAR
    frames = [Image.fromarray(frame).resize((width, height), method).crop(box) for frame in rgb]
    return np.stack([np.asarray(frame) for frame in frames])


def _normalise_bytes(rgb: Rgb, rule: FramePreprocessing) -> Pixels:
    """(value / 255 - mean) / std by table: a byte has 256 values, each rounded as Hugging Face does."""
    value = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    pixels = np.empty((len(rgb), 3, *rgb.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        table = (value - np.float32(rule.mean[channel])) / np.float32(rule.std[channel])
        np.take(table, rgb[..., channel], out=pixels[:, channel])
    return pixels


def _resize_bilinear(rgb: Rgb, height: int, width: int, size: int) -> Pixels:
    """float32 [N, size, size, 3], values 0 to 255; only what the crop keeps is computed."""
    upper, lower, down = _taps(rgb.shape[1], height, size)
    before, after, right = _taps(rgb.shape[2], width, size)
    down, right = down[:, None, None], right[:, None]
    rows = rgb[:, upper] * (1 - down) + rgb[:, lower] * down
    return np.asarray(rows[:, :, before] * (1 - right) + rows[:, :, after] * right)


def _taps(
    source: int, target: int, size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Per kept output position: the two source positions and the second one's weight."""
    start = _crop_start(target, size)
    scale = np.float32(source / target)
    position = (np.arange(start, start + size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    position = np.maximum(position, np.float32(0.0))
    first = np.minimum(position.astype(np.int64), source - 1)
    second = np.minimum(first + 1, source - 1)
    return first, second, (position - first).astype(np.float32)


def _normalise_values(values: Pixels, rule: FramePreprocessing) -> Pixels:
    """(value / 255 - mean) / std as one multiplication and one addition, channels first."""
    std = np.array(rule.std, dtype=np.float64)
    scale = (1 / (255 * std)).astype(np.float32)
    offset = (-np.array(rule.mean, dtype=np.float64) / std).astype(np.float32)
    return np.ascontiguousarray((values * scale + offset).transpose(0, 3, 1, 2))
