"""Training of three small video networks on the mini-world's motions: five classes, labels only.

Frames are drawn at random and sorted, so that the networks learn the uneven stride of k-means keyframes.
videomae.py trains the fourth, VideoMAE, for which labels alone are not enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.progress import Progress
from ...export.networks.preprocessing import PYTORCHVIDEO_MEAN, PYTORCHVIDEO_STD
from ...export.networks.small import BUILDERS, SMALL_FORMS
from .clips import FRAME_SIZE, TrainingClips
from .training import Optimisation, minimise

if TYPE_CHECKING:
    from torch import Tensor, nn

Indices = npt.NDArray[np.int64]
SHADE = 0.15  # largest relative change of each colour channel


@dataclass(frozen=True)
class MotionSettings:
    """Settings of the training; the fields are keys of report.json."""

    steps: int = 900
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up: int = 100  # steps
    seed: int = 0
    half: bool = True  # matrix products in bf16


def train_motion(
    name: str, clips: TrainingClips, settings: MotionSettings, *, progress: Progress | None = None
) -> nn.Module:
    """Train the small network of that name (slow, i3d, resnet3d). ``progress`` advances by one per step."""
    import torch
    from torch.nn import functional

    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    net = BUILDERS[name]().train()

    def loss_at(step: int) -> Tensor:
        rows = random.integers(len(clips), size=settings.batch)
        pixels, _ = augment_clips(clips.videos, rows, SMALL_FORMS[name].frames, random)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.half):
            scores = classify(name, net, pixels)
        return functional.cross_entropy(scores.float(), torch.from_numpy(clips.motions[rows]))

    optimisation = Optimisation(
        settings.steps, settings.learning_rate, settings.weight_decay, settings.warm_up, betas=(0.9, 0.999)
    )
    minimise(name, net.parameters(), loss_at, optimisation, progress)
    return net.eval()


def classify(name: str, net: Any, pixels: Tensor) -> Tensor:
    """Scores [B, 5] of clips float32 [B, 3, K, S, S]."""
    if name == "videomae":
        return net(pixels.transpose(1, 2)).logits  # type: ignore[no-any-return]
    return net(pixels)  # type: ignore[no-any-return]


def embed_clips(name: str, net: Any, pixels: Tensor) -> npt.NDArray[np.float32]:
    """Embeddings float32 [B, width]: the input of the last dense layer, averaged over the windows of the head."""
    import torch

    with torch.inference_mode():
        if name == "videomae":
            vectors = net.fc_norm(net.videomae(pixels.transpose(1, 2)).last_hidden_state.mean(1))
        elif name == "resnet3d":
            maps = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(pixels)))))
            vectors = net.avgpool(maps).flatten(1)
        else:
            maps = pixels
            for block in net.blocks[:-1]:
                maps = block(maps)
            vectors = net.blocks[-1].pool(maps).mean(dim=(2, 3, 4))
    return np.asarray(vectors.numpy())


def prepare_clips(videos: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [B, K, 72, 72, 3] -> float32 [B, 3, K, 64, 64], the whole square, as all four networks read it."""
    return _normalised(_resized(videos))


def measure_motion(
    name: str, net: nn.Module, clips: TrainingClips, *, seed: int = 1, batch: int = 64
) -> dict[str, float]:
    """Share (0 … 1) of clips whose motion is predicted correctly, from evenly spread and from random frames."""
    import torch

    random = np.random.default_rng(seed)
    count = SMALL_FORMS[name].frames
    even = (2 * np.arange(count) + 1) * clips.videos.shape[1] // (2 * count)
    correct = {"even": 0, "random": 0}
    for start in range(0, len(clips), batch):
        videos = clips.videos[start : start + batch]
        truth = torch.from_numpy(clips.motions[start : start + batch])
        drawn = draw_frames(len(videos), videos.shape[1], count, random)
        for choice, picked in (("even", videos[:, even]), ("random", np.take_along_axis(videos, drawn, axis=1))):
            with torch.inference_mode():
                predicted = classify(name, net, prepare_clips(picked)).argmax(-1)
            correct[choice] += int((predicted == truth).sum())
    return {"clips": float(len(clips)), **{choice: count / len(clips) for choice, count in correct.items()}}


def draw_frames(rows: int, frames: int, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Frame indices int64 [rows, count, 1, 1, 1], increasing: for half of the rows any, for half one of each part."""
    loose = np.sort(random.random((rows, frames)).argsort(axis=1)[:, :count], axis=1)
    edges = np.arange(count) * frames / count
    spread = (edges + random.random((rows, count)) * frames / count).astype(np.int64)
    chosen = np.where(random.random((rows, 1)) < 0.5, loose, spread)
    return chosen[:, :, None, None, None]


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Frames, crop and reflection of an augmented batch."""

    frames: Indices  # [B, K] of each clip's candidates, increasing
    corner: tuple[int, int]  # pixels from the left and from the top
    size: int  # pixels, side of the crop
    mirrored: npt.NDArray[np.bool_]  # [B]


def augment_clips(
    videos: npt.NDArray[np.uint8], rows: Indices, count: int, random: np.random.Generator
) -> tuple[Tensor, Augmentation]:
    """``count`` frames of each of ``rows``, with one crop for all, random reflections and changes of colour."""
    import torch

    frames = draw_frames(len(rows), videos.shape[1], count, random)[..., 0, 0, 0]
    size = int(random.integers(SMALL_FORMS["slow"].crop, FRAME_SIZE + 1))
    left, top = (int(start) for start in random.integers(0, FRAME_SIZE - size + 1, size=2))
    mirrored = random.random(len(rows)) < 0.5
    pixels = _resized(videos[rows[:, None], frames][:, :, top : top + size, left : left + size])
    pixels = torch.where(torch.from_numpy(mirrored)[:, None, None, None, None], pixels.flip(-1), pixels)
    gains = random.uniform(1 - SHADE, 1 + SHADE, size=(len(rows), 3, 1, 1, 1)).astype(np.float32)
    pixels = _normalised((pixels * torch.from_numpy(gains)).clamp(0, 255))
    return pixels, Augmentation(frames, (left, top), size, mirrored)


def _resized(videos: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [B, K, H, W, 3] -> float32 [B, 3, K, 64, 64], 0 … 255"""
    import torch
    from torch.nn import functional

    rows, count = videos.shape[:2]
    pixels = torch.from_numpy(np.ascontiguousarray(videos.transpose(0, 1, 4, 2, 3))).flatten(0, 1).float()
    size = SMALL_FORMS["slow"].crop
    if pixels.shape[-2:] != (size, size):
        pixels = functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    return pixels.reshape(rows, count, *pixels.shape[1:]).transpose(1, 2).contiguous()


def _normalised(pixels: Tensor) -> Tensor:
    import torch

    mean, std = (torch.tensor(values)[:, None, None, None] for values in (PYTORCHVIDEO_MEAN, PYTORCHVIDEO_STD))
    return (pixels / 255 - mean) / std
