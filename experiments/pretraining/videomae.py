"""Training of the small VideoMAE on the mini-world's motions.

Labels alone taught it nothing in a thousand steps: it would have to find out that there is an actor, where
it is, and that its way matters. Two losses say so, with heads that are thrown away, as the captioner's asks
what covers each patch. In the middle of the network each tube is asked for its own place and time (which the
library's table of positions, made for a line of words, hides well) and whether and where it sees the actor;
one layer later every tube is asked for the actor's way: where on the whole, how far about, which way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...base.progress import Progress
from ...export.networks.small import SMALL_FORMS, build_small_videomae
from .captioner import check_loss, warm_cosine
from .clips import FILM_SIZE, Footage
from .motion import View, augment_films

if TYPE_CHECKING:
    from torch import Tensor, nn

SCALE = 4.0  # places are told in quarters of the frame's side, the size of a patch
NEAR = 0.3  # of the side: a tube whose middle is further from the actor is not asked where that is
MIDDLE = (0.5, 0.5, 0.15)  # of x, y and radius


@dataclass(frozen=True)
class TubeSettings:
    looking: int = 300  # steps of the losses on places alone
    steps: int = 1500  # steps of all losses after them
    batch: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warm_up: int = 100  # steps
    seed: int = 0
    told: int = 2  # layers before the first question; the second is one later
    way: float = 2.0  # weight of the second


def train_tubes(footage: Footage, settings: TubeSettings, *, progress: Progress | None = None) -> nn.Module:
    """A small VideoMAE, trained on ``footage``; ``progress``: a step per batch."""
    import torch
    from torch.nn import functional

    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    net: Any = build_small_videomae().train()
    _waken(net)
    width = net.config.hidden_size
    heads = torch.nn.ModuleDict({"here": _head(width, 7), "way": _head(width, 9)})
    parameters = [*net.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98), fused=True
    )
    total = settings.looking + settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_cosine(settings.warm_up, total))
    for step in range(total):
        rows = random.integers(len(footage), size=settings.batch)
        pixels, view = augment_films(footage.films, rows, SMALL_FORMS["videomae"].frames, random)
        moments = torch.from_numpy(moments_of(footage.tracks[rows], view, net.config.tubelet_size))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layers = net.videomae(pixels.transpose(1, 2), output_hidden_states=True).hidden_states
            here, way = heads["here"](layers[settings.told]), heads["way"](layers[settings.told + 1])
            scores = net.classifier(net.fc_norm(layers[-1].mean(1)))
        loss = _here_loss(here.float(), moments) + settings.way * _way_loss(way.float(), moments)
        if step >= settings.looking:
            loss = loss + functional.cross_entropy(scores.float(), torch.from_numpy(footage.motions[rows]))
        check_loss(loss, "videomae")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress.advance()
    return net.eval()  # type: ignore[no-any-return]


def moments_of(tracks: np.ndarray, view: View, frames: int) -> np.ndarray:
    """float32 [B, K / frames, 3]: the actor's x, y and radius in shares of what was looked at, means over a tube.

    ``tracks``: float32 [B, 32, 3], shares of the film's side; ``frames``: of a tube.
    """
    shown = np.take_along_axis(tracks, view.frames[:, :, None], axis=1)
    seen = (shown * FILM_SIZE - np.array([*view.corner, 0])) / view.size
    seen[view.mirrored, :, 0] = 1 - seen[view.mirrored, :, 0]
    means = seen.reshape(len(seen), -1, frames, 3).mean(axis=2)
    return means.astype(np.float32)  # type: ignore[no-any-return]


def _waken(net: nn.Module) -> None:
    """Start the layers' weights at 1 / sqrt(inputs), so that each changes what it is given from the first step.

    The library's 0.02 is for a width of 768: at 128 attention and dense layers begin as next to nothing.
    """
    import torch

    whole: Any = net
    for module in whole.videomae.encoder.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)


def _head(width: int, numbers: int) -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, numbers))


def _here_loss(told: Tensor, moments: Tensor) -> Tensor:
    """``told``: [B, tubes, 7]: is the actor's middle in the tube; its x, y, radius; the tube's own x, y, time."""
    import torch
    from torch.nn import functional

    rows, times = moments.shape[:2]
    side = round((told.shape[1] / times) ** 0.5)
    middle = (torch.arange(side) + 0.5) / side
    places = torch.stack([middle.repeat(side), middle.repeat_interleave(side)], dim=1)
    told = told.view(rows, times, side * side, 7)
    away = (moments[:, :, None, :2] - places).abs().amax(-1)
    inside, near = (away < 0.5 / side).float(), (away < NEAR).float()
    actor = (moments - torch.tensor(MIDDLE))[:, :, None] * SCALE
    off = (told[..., 1:4] - actor).abs().mean(-1)
    clock = torch.linspace(-1, 1, times)[:, None, None].expand(-1, side * side, 1)
    own = torch.cat([(places - 0.5).expand(times, -1, 2) * SCALE, clock], dim=-1)
    lost = (told[..., 4:] - own).abs().mean()
    found = functional.binary_cross_entropy_with_logits(told[..., 0], inside, pos_weight=torch.tensor(5.0))
    return found + lost + (off * near).sum() / near.sum().clamp(min=1)


def _way_loss(told: Tensor, moments: Tensor) -> Tensor:
    """``told``: [B, tubes, 9]: of x, y and radius over the clip the mean, the deviation, and the trend."""
    import torch

    times = moments.shape[1]
    mean = moments.mean(dim=1)
    away = moments - mean[:, None]
    clock = torch.linspace(-1, 1, times)
    trend = (away * clock[:, None]).mean(dim=1) / clock.square().mean()
    goal = torch.cat([mean - torch.tensor(MIDDLE), away.square().mean(dim=1).sqrt(), trend], dim=-1) * SCALE
    return (told - goal[:, None]).abs().mean()
