"""Stills as the small BLIP and CLIP read them in training: preparation, augmentation, and the loss on patches.

The loss on patches asks each image patch which object covers it. It makes a small network learn in minutes; its
head is thrown away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...export.networks.preprocessing import CLIP_MEAN, CLIP_STD
from ...export.networks.small import SMALL_FORMS
from ..miniworld.specs import OBJECTS
from .clips import STILL_SIZE

if TYPE_CHECKING:
    from torch import Tensor

MIN_CROP = 88  # pixels of a still that training sees, at least
SHADE = 0.1  # largest relative change of brightness and of each colour channel
PATCH_CLASSES = 2 * len(OBJECTS) + 1  # the actor's kind, the distractor's kind, or nothing
NOTHING_WEIGHT = 0.2  # of patches without an object, which are most of a frame


def prepare_stills(stills: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, 96, 96] as the small BLIP reads whole frames."""
    return _normalised(_resized(_channels_first(stills)))


def augment_stills(
    stills: npt.NDArray[np.uint8], places: npt.NDArray[np.float32], random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Prepared stills after one crop for the whole batch and a change of colour for each; and the places in them.

    ``stills``: uint8 [B, 104, 104, 3]; ``places``: float32 [B, 2, 4] in shares of the still. Returns float32
    [B, 3, 96, 96], and the places in shares of the crop.
    """
    import torch

    size = int(random.integers(MIN_CROP, STILL_SIZE + 1))
    left, top = _jitter(STILL_SIZE - size, random), _jitter(STILL_SIZE - size, random)
    pixels = _resized(_channels_first(stills[:, top : top + size, left : left + size]))
    gains = random.uniform(1 - SHADE, 1 + SHADE, size=(len(stills), 1, 1, 1)) * random.uniform(
        1 - SHADE / 2, 1 + SHADE / 2, size=(len(stills), 3, 1, 1)
    )
    pixels = (pixels * torch.from_numpy(gains.astype(np.float32))).clamp(0, 255)
    start = np.array([left, top, 0, 0], dtype=np.float32)
    shown = (places * STILL_SIZE - start) / np.float32(size)
    return _normalised(pixels), torch.from_numpy(shown.astype(np.float32))


def patch_loss(logits: Tensor, places: Tensor, kinds: Tensor) -> Tensor:
    """Cross-entropy of the patches' covers. ``logits``: [B, patches, PATCH_CLASSES]; others as patch_targets."""
    import torch
    from torch.nn import functional

    weight = torch.ones(PATCH_CLASSES)
    weight[-1] = NOTHING_WEIGHT
    covers = patch_targets(places, kinds, logits.shape[1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), covers.flatten(), weight=weight)


def patch_targets(places: Tensor, kinds: Tensor, patches: int) -> Tensor:
    """int64 [B, patches]: the cover of each patch: the actor's kind, 5 + the distractor's, or 10 for nothing.

    ``places``: float32 [B, 2, 4] in shares of the crop; ``kinds``: int64 [B, 2].
    """
    import torch

    side = round(patches**0.5)
    middle = (torch.arange(side) + 0.5) / side
    x, y = middle.repeat(side), middle.repeat_interleave(side)
    targets = torch.full((len(places), patches), 2 * len(OBJECTS))
    for which in (1, 0):  # the actor is in front
        at = places[:, which, :, None]
        away = ((x - at[:, 0]) / (at[:, 2] + 0.25 / side)) ** 2 + ((y - at[:, 1]) / (at[:, 3] + 0.25 / side)) ** 2
        targets = torch.where(away < 1, kinds[:, which, None] + which * len(OBJECTS), targets)
    return targets


def place_patches(positions: Tensor) -> None:
    """Initialise an image transformer's position vectors [1, 1 + side * side, width] as two-dimensional sines.

    Neighbours are then similar from the first step (https://arxiv.org/abs/2205.01580); training changes them further.
    """
    import torch

    side, quarter = round((positions.shape[-2] - 1) ** 0.5), positions.shape[-1] // 4
    angles = torch.arange(side)[:, None] * 100.0 ** (-torch.arange(quarter) / quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    with torch.no_grad():
        positions[..., 1:, :] = 0.5 * torch.cat([rows, columns], dim=2).reshape(side * side, -1)


def _jitter(slack: int, random: np.random.Generator) -> int:
    """A crop's start near the middle of ``slack``, at most 8 pixels off."""
    return int(np.clip(slack // 2 + random.integers(-8, 9), 0, slack))


def _channels_first(stills: npt.NDArray[np.uint8]) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(stills.transpose(0, 3, 1, 2))).float()


def _resized(pixels: Tensor) -> Tensor:
    from torch.nn import functional

    size = SMALL_FORMS["blip"].crop
    if pixels.shape[-2:] == (size, size):
        return pixels
    return functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)


def _normalised(pixels: Tensor) -> Tensor:
    import torch

    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels / 255 - mean) / std
