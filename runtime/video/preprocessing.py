"""From RGB frames to a network's input, exactly as the manifest's FramePreprocessing defines it.

``bicubic`` and ``bilinear-pillow`` give the bytes of Pillow's antialiased filters, and after normalisation those of
Hugging Face's ``BlipImageProcessorPil``. ``bilinear`` is PyTorch's ``interpolate(mode="bilinear", align_corners=False,
antialias=False)`` as pytorchvideo's ``ShortSideScale`` calls it (bilinear.py); ``bilinear-bytes`` is the same rounded
to whole numbers, as torchvision's video presets resize byte tensors. ``crop`` is the centre crop of torchvision.

A graph takes bytes and normalises them itself, or takes normalised values
(docs/decisions/033-fractions-for-keyframes.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import UnsetType

from ...base.errors import DataError, MissingExtra
from ..bundle.graph_records import Graph, Record
from ..bundle.manifest import FramePreprocessing
from .bilinear import BilinearScaler, crop_start

Rgb = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.float32]
Frames = npt.NDArray[Any]  # uint8 [N, size, size, 3], or float32 [N, 3, size, size]: as a FrameInput says
MAX_RESIZED_PIXELS = 1 << 25  # pixels; a frame of 100,000 × 1 would take gigabytes


class FrameInput(Record, frozen=True):
    """Form of a graph's frames: ``whole_bytes`` uint8 [size, size, 3] each, else float32 [3, size, size]."""

    preprocessing: FramePreprocessing
    whole_bytes: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.whole_bytes else np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        size = self.preprocessing.size
        return (size, size, 3) if self.whole_bytes else (3, size, size)


def frame_input(graph: Graph, rule: FramePreprocessing) -> FrameInput:
    """The form that ``graph`` takes, by the type of its input.

    Raises DataError for a graph that takes bytes where the filter gives fractions.
    """
    whole_bytes = any(each.name in ("pixels", "frames") and each.dtype == "uint8" for each in graph.inputs)
    if whole_bytes and not rule.gives_bytes:
        raise DataError(
            f"{graph.file} takes whole bytes, expected float32 with the filter 'bilinear', which gives fractions",
            fix="export the bundle again with this version of flamest-export",
            code="bad_graph",
        )
    return FrameInput(rule, whole_bytes)


def prepare_frames(rgb: Rgb, rule: FramePreprocessing) -> Pixels:
    """Resize, crop and normalise: uint8 [N, H, W, 3] -> float32 [N, 3, size, size]. Raises as ``frames_for``."""
    return frames_for(rgb, FrameInput(rule, whole_bytes=False))


def frames_for(rgb: Iterable[Rgb], form: FrameInput) -> Frames:
    """Prepare frames uint8 [H, W, 3], all of one size, as ``form`` says.

    Raises DataError (``video_too_large``) for a frame so long and thin that its short side cannot be resized to
    ``size``.
    """
    preparer = FramePreparer(form)
    frames = [preparer.prepare(frame) for frame in rgb]
    return np.stack(frames) if frames else np.empty((0, *form.shape), form.dtype)


class FramePreparer:
    """Prepares frames one by one, over buffers made for the first one's size. One thread at a time."""

    def __init__(self, form: FrameInput) -> None:
        self._form = form
        self._size = (0, 0)
        self._resize: Callable[[Rgb], npt.NDArray[Any]]

    def prepare(self, rgb: Rgb) -> Frames:
        """A frame uint8 [H, W, 3] as uint8 [size, size, 3] or float32 [3, size, size]. Raises as ``frames_for``."""
        height, width = rgb.shape[:2]
        if (height, width) != self._size:
            self._resize, self._size = _resizing(height, width, self._form.preprocessing), (height, width)
        resized = self._resize(rgb)
        return resized if self._form.whole_bytes else normalise(resized, self._form.preprocessing)


def normalise(frame: npt.NDArray[Any], rule: FramePreprocessing) -> Pixels:
    """(value / 255 - mean) / std of a resized frame, uint8 or float32 [size, size, 3] -> float32 [3, size, size]."""
    out = np.empty((3, *frame.shape[:2]), dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(rule.mean, rule.std, strict=True)):
        if rule.filter in ("bicubic", "bilinear-pillow"):
            np.take(_levels(mean, std), frame[..., channel], out=out[channel])
        else:
            np.multiply(frame[..., channel], np.float32(1 / (255 * std)), out=out[channel])
            out[channel] += np.float32(-mean / std)
    return out


def resized_size(height: int, width: int, rule: FramePreprocessing) -> tuple[int, int]:
    """Height and width before the crop; ``crop`` brings the short side to size, or to the rule's short side, the long
    one rounded down."""
    if rule.resized is not None:
        return rule.resized
    if rule.fit == "stretch":
        return rule.size, rule.size
    short = rule.size if isinstance(rule.short_side, UnsetType) else rule.short_side
    if width < height:
        return math.floor(height / width * short), short
    return short, math.floor(width / height * short)


def _levels(mean: float, std: float) -> npt.NDArray[np.float32]:
    """Normalised values of the 256 bytes, rounded at each step as Hugging Face does."""
    value = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (value - np.float32(mean)) / np.float32(std)


def _resizing(height: int, width: int, rule: FramePreprocessing) -> Callable[[Rgb], npt.NDArray[Any]]:
    """The function that resizes and crops a frame of this size: uint8 [H, W, 3] -> [size, size, 3], bytes or floats."""
    resized = resized_size(height, width, rule)
    if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
        raise DataError(
            f"frames of {width}x{height} pixels are too long and thin to resize to {rule.size} pixels",
            fix="crop the video, or remove it",
            code="video_too_large",
        )
    if rule.filter in ("bicubic", "bilinear-pillow"):
        return lambda rgb: _resize_by_pillow(rgb, resized, rule)
    scaler = BilinearScaler((height, width), resized, rule.size)
    return scaler.whole_bytes if rule.filter == "bilinear-bytes" else scaler.fractions


def _resize_by_pillow(rgb: Rgb, resized: tuple[int, int], rule: FramePreprocessing) -> Rgb:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", extra="agent") from error

    (height, width), size = resized, rule.size
    top, left = crop_start(height, size), crop_start(width, size)
    method = Image.Resampling.BICUBIC if rule.filter == "bicubic" else Image.Resampling.BILINEAR
    frame = Image.fromarray(rgb).resize((width, height), method).crop((left, top, left + size, top + size))
    return np.asarray(frame)
