"""Training of the small CLIP: frames and captions of the mini-world, told apart within a batch.

Its captions are full sentences of the grammar, or short ones ("a red ball", "a ball crossing"), as
captions from the web name now this and now that. Captions that are equal are not told apart. The loss
on patches is the captioner's, and its head is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.progress import Progress
from ...export.networks.small import build_small_clip
from ...export.weights.vocabulary import PAD
from ..miniworld.plan import class_captions
from ..miniworld.videos import MOTIONS, OBJECTS
from .captioner import (
    augment_stills,
    check_loss,
    encode_captions,
    patch_targets,
    place_patches,
    prepare_stills,
    warm_cosine,
)
from .clips import Footage

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ContrastSettings:
    looking: int = 500  # steps of the loss on patches alone
    steps: int = 600  # steps of both losses after them
    batch: int = 96
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 100  # steps
    seed: int = 0
    patches: float = 0.5  # weight of the loss on patches


def train_clip(footage: Footage, settings: ContrastSettings, *, progress: Progress | None = None) -> nn.Module:
    """A small CLIP, trained on all stills of ``footage``; ``progress``: one step per batch."""
    import torch
    from torch.nn import functional

    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    model: Any = build_small_clip().train()
    place_patches(model.vision_model.embeddings.position_embedding.weight[None])
    head = torch.nn.Linear(model.config.vision_config.hidden_size, 2 * len(OBJECTS) + 1)
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98), fused=True
    )
    total = settings.looking + settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_cosine(settings.warm_up, total))
    per_clip = footage.stills.shape[1]
    weight = torch.ones(2 * len(OBJECTS) + 1)
    weight[-1] = 0.2
    for step in range(total):
        rows = random.integers(len(footage), size=settings.batch)
        which = random.integers(per_clip, size=settings.batch)
        pixels, seen = augment_stills(footage.stills[rows, which], footage.places[rows, which], random)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = model.vision_model(pixel_values=pixels)
            patches = image.last_hidden_state[:, 1:]
            covered = patch_targets(seen, torch.from_numpy(footage.kinds[rows]), patches.shape[1])
            guess = head(patches).flatten(0, 1).float()
            loss = settings.patches * functional.cross_entropy(guess, covered.flatten(), weight=weight)
            if step >= settings.looking:
                captions = [_caption(footage, row, still, random) for row, still in zip(rows, which, strict=True)]
                loss = loss + _contrast(model, image.pooler_output, captions)
        check_loss(loss, "clip")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress.advance()
    return model.eval()  # type: ignore[no-any-return]


def measure_clip(model: Any, footage: Footage, *, still: int = 6) -> dict[str, float]:
    """Share (0 … 1) of clips for whose middle still the nearest class caption names the actor."""
    import torch

    captions = list(class_captions().values())
    with torch.inference_mode():
        text = _text_vectors(model, captions)
        image = image_vectors(model, footage.stills[:, still])
        nearest = (image @ text.T).argmax(-1).numpy()
    kinds = np.array([OBJECTS.index(caption.split()[1]) for caption in captions])
    return {"clips": float(len(footage)), "actor": float((kinds[nearest] == footage.kinds[:, 0]).mean())}


def image_vectors(model: Any, stills: npt.NDArray[np.uint8]) -> Tensor:
    """float32 [N, 128] of length 1, of whole frames."""
    from torch.nn import functional

    pooled = model.vision_model(pixel_values=prepare_stills(stills)).pooler_output
    return functional.normalize(model.visual_projection(pooled), dim=-1)


def _text_vectors(model: Any, captions: list[str]) -> Tensor:
    import torch
    from torch.nn import functional

    ids = torch.from_numpy(encode_captions(captions))
    pooled = model.text_model(input_ids=ids, attention_mask=(ids != PAD).long()).pooler_output
    return functional.normalize(model.text_projection(pooled), dim=-1)


def _contrast(model: Any, pooled: Tensor, captions: list[str]) -> Tensor:
    import torch
    from torch.nn import functional

    image = functional.normalize(model.visual_projection(pooled), dim=-1)
    text = _text_vectors(model, captions)
    scores = (image.float() @ text.float().T) * model.logit_scale.exp().clamp(max=100)
    names = np.array(captions)
    same = torch.from_numpy((names[:, None] == names[None]).astype(np.float32))
    target = same / same.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)) / 2


def _caption(footage: Footage, row: int, still: int, random: np.random.Generator) -> str:
    full = footage.captions[row][still]
    way = random.random()
    if way < 0.5:
        return full
    if way < 0.75:
        return " ".join(full.split()[:3])
    return f"a {OBJECTS[footage.kinds[row, 0]]} {MOTIONS[footage.motions[row]]}"
