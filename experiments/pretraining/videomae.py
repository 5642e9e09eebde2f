"""Training of the small VideoMAE on the mini-world's motions.

With labels alone it learned nothing in a thousand steps: it would have to discover that there is an actor, where
it is, and that its trajectory matters. Two auxiliary losses teach that, with heads that are thrown away. A tube is
the patch of two frames that the network reads as one token. In the middle of the network each tube predicts its own
place and time (which the library's one-dimensional position table hides) and whether and where it contains the
actor; one layer later every tube predicts the actor's trajectory: mean, standard deviation and trend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...base.progress import Progress
from ...export.networks.small import SMALL_FORMS, build_small_videomae
from .clips import FRAME_SIZE, TrainingClips
from .motion import Augmentation, augment_clips
from .training import Optimisation, minimise

if TYPE_CHECKING:
    from torch import Tensor, nn

SCALE = 4.0  # positions are predicted in quarters of the frame's side, the size of a patch
NEAR = 0.3  # of the side: tubes further from the actor do not predict its position
MIDDLE = (0.5, 0.5, 0.15)  # typical x, y and radius


@dataclass(frozen=True)
class VideoMaeSettings:
    """Settings of the training; the fields, or their ``key``, are keys of report.json."""

    looking: int = 300  # steps of the auxiliary losses alone
    steps: int = 1500  # further steps of all losses
    batch: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warm_up: int = 100  # steps
    seed: int = 0
    position_layer: int = field(
        default=2, metadata={"key": "told"}
    )  # layers before the head of positions; that of trajectories is one later
    trajectory_weight: float = field(default=2.0, metadata={"key": "way"})  # of their loss


def train_videomae(clips: TrainingClips, settings: VideoMaeSettings, *, progress: Progress | None = None) -> nn.Module:
    """Train a small VideoMAE on ``clips``. ``progress`` advances by one per step."""
    import torch
    from torch.nn import functional

    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    net: Any = build_small_videomae().train()
    _initialise_layers(net)
    width = net.config.hidden_size
    heads = torch.nn.ModuleDict({"position": _head(width, 7), "trajectory": _head(width, 9)})

    def loss_at(step: int) -> Tensor:
        rows = random.integers(len(clips), size=settings.batch)
        pixels, augmentation = augment_clips(clips.videos, rows, SMALL_FORMS["videomae"].frames, random)
        actor = torch.from_numpy(actor_in_tubes(clips.tracks[rows], augmentation, net.config.tubelet_size))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layers = net.videomae(pixels.transpose(1, 2), output_hidden_states=True).hidden_states
            positions = heads["position"](layers[settings.position_layer])
            trajectories = heads["trajectory"](layers[settings.position_layer + 1])
            scores = net.classifier(net.fc_norm(layers[-1].mean(1)))
        loss = _position_loss(positions.float(), actor) + settings.trajectory_weight * _trajectory_loss(
            trajectories.float(), actor
        )
        if step >= settings.looking:
            loss = loss + functional.cross_entropy(scores.float(), torch.from_numpy(clips.motions[rows]))
        return loss

    optimisation = Optimisation(
        settings.looking + settings.steps, settings.learning_rate, settings.weight_decay, settings.warm_up
    )
    minimise("videomae", [*net.parameters(), *heads.parameters()], loss_at, optimisation, progress)
    return net.eval()  # type: ignore[no-any-return]


def actor_in_tubes(tracks: np.ndarray, augmentation: Augmentation, frames: int) -> np.ndarray:
    """float32 [B, K / frames, 3]: the actor's x, y and radius in shares of the crop, means over a tube.

    ``tracks``: float32 [B, 32, 3], shares of the clip's side; ``frames``: of a tube.
    """
    shown = np.take_along_axis(tracks, augmentation.frames[:, :, None], axis=1)
    cropped = (shown * FRAME_SIZE - np.array([*augmentation.corner, 0])) / augmentation.size
    cropped[augmentation.mirrored, :, 0] = 1 - cropped[augmentation.mirrored, :, 0]
    means = cropped.reshape(len(cropped), -1, frames, 3).mean(axis=2)
    return means.astype(np.float32)  # type: ignore[no-any-return]


def _initialise_layers(net: nn.Module) -> None:
    """Initialise the layers' weights with standard deviation 1 / sqrt(inputs).

    The library's 0.02 is for a width of 768: with 128 the outputs of attention and dense layers are nearly 0.
    """
    import torch

    videomae: Any = net
    for module in videomae.videomae.encoder.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)


def _head(width: int, outputs: int) -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))


def _position_loss(predicted: Tensor, actor: Tensor) -> Tensor:
    """``predicted`` [B, tubes, 7]: logit of "the actor is here"; its x, y, radius; the tube's own x, y, time."""
    import torch
    from torch.nn import functional

    rows, times = actor.shape[:2]
    side = round((predicted.shape[1] / times) ** 0.5)
    middle = (torch.arange(side) + 0.5) / side
    places = torch.stack([middle.repeat(side), middle.repeat_interleave(side)], dim=1)
    predicted = predicted.view(rows, times, side * side, 7)
    away = (actor[:, :, None, :2] - places).abs().amax(-1)
    inside, near = (away < 0.5 / side).float(), (away < NEAR).float()
    target = (actor - torch.tensor(MIDDLE))[:, :, None] * SCALE
    off = (predicted[..., 1:4] - target).abs().mean(-1)
    clock = torch.linspace(-1, 1, times)[:, None, None].expand(-1, side * side, 1)
    own = torch.cat([(places - 0.5).expand(times, -1, 2) * SCALE, clock], dim=-1)
    misplaced = (predicted[..., 4:] - own).abs().mean()
    found = functional.binary_cross_entropy_with_logits(predicted[..., 0], inside, pos_weight=torch.tensor(5.0))
    return found + misplaced + (off * near).sum() / near.sum().clamp(min=1)


def _trajectory_loss(predicted: Tensor, actor: Tensor) -> Tensor:
    """``predicted`` [B, tubes, 9]: mean, standard deviation and trend of x, y and radius over the clip."""
    import torch

    times = actor.shape[1]
    mean = actor.mean(dim=1)
    away = actor - mean[:, None]
    clock = torch.linspace(-1, 1, times)
    trend = (away * clock[:, None]).mean(dim=1) / clock.square().mean()
    goal = torch.cat([mean - torch.tensor(MIDDLE), away.square().mean(dim=1).sqrt(), trend], dim=-1) * SCALE
    return (predicted - goal[:, None]).abs().mean()
