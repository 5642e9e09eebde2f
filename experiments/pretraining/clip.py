"""Training of the small CLIP: contrast within a batch between frames and captions of the mini-world.

Its captions are full sentences of the grammar, or short ones ("a red ball", "a ball crossing"), because captions
from the web also name different parts of a picture. Equal captions count as the same. The loss on patches is the
captioner's, and its head is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.progress import Progress
from ...export.networks.small import build_small_clip
from ...export.weights.vocabulary import PAD
from ..miniworld.specs import MOTIONS, OBJECTS, class_captions
from .captioner import encode_captions
from .clips import TrainingClips
from .stills import PATCH_CLASSES, augment_stills, patch_loss, place_patches, prepare_stills
from .training import Optimisation, minimise

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ClipSettings:
    """Settings of the training; the fields are keys of report.json."""

    looking: int = 500  # steps of the loss on patches alone
    steps: int = 600  # further steps of both losses
    batch: int = 96
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 100  # steps
    seed: int = 0
    patches: float = 0.5  # weight of the loss on patches


def train_clip(clips: TrainingClips, settings: ClipSettings, *, progress: Progress | None = None) -> nn.Module:
    """Train a small CLIP on all stills of ``clips``. ``progress`` advances by one per step."""
    import torch

    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    model: Any = build_small_clip().train()
    place_patches(model.vision_model.embeddings.position_embedding.weight[None])
    head = torch.nn.Linear(model.config.vision_config.hidden_size, PATCH_CLASSES)
    per_clip = clips.stills.shape[1]

    def loss_at(step: int) -> Tensor:
        rows = random.integers(len(clips), size=settings.batch)
        which = random.integers(per_clip, size=settings.batch)
        pixels, shown = augment_stills(clips.stills[rows, which], clips.places[rows, which], random)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = model.vision_model(pixel_values=pixels)
            logits = head(image.last_hidden_state[:, 1:])
            loss = settings.patches * patch_loss(logits, shown, torch.from_numpy(clips.kinds[rows]))
            if step >= settings.looking:
                captions = [_draw_caption(clips, row, still, random) for row, still in zip(rows, which, strict=True)]
                loss = loss + _contrastive_loss(model, image.pooler_output, captions)
        return loss

    optimisation = Optimisation(
        settings.looking + settings.steps, settings.learning_rate, settings.weight_decay, settings.warm_up
    )
    minimise("clip", [*model.parameters(), *head.parameters()], loss_at, optimisation, progress)
    return model.eval()  # type: ignore[no-any-return]


def measure_clip(model: Any, clips: TrainingClips, *, still: int = 6) -> dict[str, float]:
    """Share (0 … 1) of clips for whose middle still the nearest class caption names the actor."""
    import torch

    captions = list(class_captions().values())
    with torch.inference_mode():
        text = _text_vectors(model, captions)
        image = image_vectors(model, clips.stills[:, still])
        nearest = (image @ text.T).argmax(-1).numpy()
    kinds = np.array([OBJECTS.index(caption.split()[1]) for caption in captions])
    return {"clips": float(len(clips)), "actor": float((kinds[nearest] == clips.kinds[:, 0]).mean())}


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


def _contrastive_loss(model: Any, pooled: Tensor, captions: list[str]) -> Tensor:
    import torch
    from torch.nn import functional

    image = functional.normalize(model.visual_projection(pooled), dim=-1)
    text = _text_vectors(model, captions)
    scores = (image.float() @ text.float().T) * model.logit_scale.exp().clamp(max=100)
    names = np.array(captions)
    same = torch.from_numpy((names[:, None] == names[None]).astype(np.float32))
    target = same / same.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)) / 2


def _draw_caption(clips: TrainingClips, row: int, still: int, random: np.random.Generator) -> str:
    """The full caption of a still, its first three words, or actor and motion."""
    full = clips.captions[row][still]
    drawn = random.random()
    if drawn < 0.5:
        return full
    if drawn < 0.75:
        return " ".join(full.split()[:3])
    return f"a {OBJECTS[clips.kinds[row, 0]]} {MOTIONS[clips.motions[row]]}"
