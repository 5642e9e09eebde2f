"""Training of the small BLIP on the mini-world's frames and true captions.

The loss is that of ``BlipForConditionalGeneration``: the caption's next token, teacher-forced. Two more losses
make a small network learn in minutes; the heads of both are thrown away. One is the loss on patches
(stills.py). The other predicts both objects from the vector at [CLS], read as the embedding is (docs/paper.md,
reading 1: the caption with the frame, every token seeing every other), as BLIP's own pretraining trains that
vector by image-text matching (https://arxiv.org/abs/2201.12086).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.progress import Progress
from ...export.graphs.spec import MAX_NEW_TOKENS
from ...export.networks.small import build_small_blip
from ...export.weights.tokenizer import small_tokenizer
from ...export.weights.vocabulary import PAD, SEP, SMALL_DEC
from ..miniworld.specs import OBJECTS, caption_nouns
from .clips import TrainingClips
from .stills import PATCH_CLASSES, augment_stills, patch_loss, place_patches, prepare_stills
from .training import Optimisation, minimise

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BlipForConditionalGeneration


@dataclass(frozen=True)
class CaptionerSettings:
    """Settings of the training; the fields are keys of report.json."""

    looking: int = 1500  # steps of the loss on patches alone, which are cheap
    steps: int = 1800  # further steps of all losses
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 150  # steps
    seed: int = 0
    patches: float = 0.5  # weight of the loss on patches
    nouns: float = 0.2  # weight of the loss at [CLS]


def train_captioner(
    clips: TrainingClips, settings: CaptionerSettings, *, progress: Progress | None = None
) -> BlipForConditionalGeneration:
    """Train a small BLIP on all stills of ``clips``. ``progress`` advances by one per step."""
    import torch

    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    model: Any = build_small_blip().train()
    place_patches(model.vision_model.embeddings.position_embedding)
    width = model.config.vision_config.hidden_size
    heads = torch.nn.ModuleDict(
        {"patches": torch.nn.Linear(width, PATCH_CLASSES), "nouns": torch.nn.Linear(width, 2 * len(OBJECTS))}
    )
    tokens = encode_captions([caption for captions in clips.captions for caption in captions])
    stills = clips.stills.reshape(-1, *clips.stills.shape[2:])
    places = clips.places.reshape(-1, 2, 4)
    kinds = np.repeat(clips.kinds, clips.stills.shape[1], axis=0)

    def loss_at(step: int) -> Tensor:
        rows = random.integers(len(stills), size=settings.batch)
        pixels, shown = augment_stills(stills[rows], places[rows], random)
        kind = torch.from_numpy(kinds[rows])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = model.vision_model(pixels).last_hidden_state
            loss = settings.patches * patch_loss(heads["patches"](image[:, 1:]), shown, kind)
            if step >= settings.looking:
                ids = torch.from_numpy(tokens[rows])
                loss = loss + _language_loss(model, image, ids)
                if step % 2:
                    loss = loss + settings.nouns * _noun_loss(model, heads["nouns"], image, ids, kind)
        return loss

    optimisation = Optimisation(
        settings.looking + settings.steps, settings.learning_rate, settings.weight_decay, settings.warm_up
    )
    minimise("blip", [*model.parameters(), *heads.parameters()], loss_at, optimisation, progress)
    return model.eval()


def _language_loss(model: Any, image: Tensor, ids: Tensor) -> Tensor:
    """The library's loss of the next token, with [DEC] in the place of [CLS]."""
    import torch

    inputs = torch.where(torch.arange(ids.shape[1]) == 0, SMALL_DEC, ids)
    labels = inputs.masked_fill(ids == PAD, -100)
    mask = (ids != PAD).long()
    decoded = model.text_decoder(
        input_ids=inputs, labels=labels, attention_mask=mask, encoder_hidden_states=image, reduction="mean"
    )
    return decoded.loss  # type: ignore[no-any-return]


def _noun_loss(model: Any, head: Any, image: Tensor, ids: Tensor, kinds: Tensor) -> Tensor:
    """Cross-entropy of both objects' kinds, predicted from the vector at [CLS] of caption and frame."""
    from torch.nn import functional

    mask = (ids != PAD).long()
    states = model.text_decoder.bert(
        input_ids=ids, attention_mask=mask, encoder_hidden_states=image, is_decoder=False
    ).last_hidden_state
    logits = head(states[:, 0]).float().view(-1, len(OBJECTS))
    return functional.cross_entropy(logits, kinds.flatten())


def encode_captions(captions: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64 [N, T]: [CLS] … [SEP], padded."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(small_tokenizer().decode())
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(captions))]
    table = np.full((len(rows), max(map(len, rows))), PAD, dtype=np.int64)
    for index, ids in enumerate(rows):
        table[index, : len(ids)] = ids
    return table


def write_captions(model: BlipForConditionalGeneration, pixels: Tensor) -> list[str]:
    """Greedy captions of prepared frames float32 [N, 3, 96, 96], decoded as by the runtime."""
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(small_tokenizer().decode())
    decoder: Any = model.text_decoder
    with torch.inference_mode():
        image = model.vision_model(pixels).last_hidden_state
        ids = torch.full((len(pixels), 1), SMALL_DEC)
        for _ in range(MAX_NEW_TOKENS):
            logits = decoder(input_ids=ids, encoder_hidden_states=image).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    captions = []
    for row in ids[:, 1:].tolist():
        captions.append(tokenizer.decode(row[: row.index(SEP)] if SEP in row else row, skip_special_tokens=True))
    return captions


def embed_frames(
    model: BlipForConditionalGeneration, pixels: Tensor, captions: Sequence[str], *, image: bool = True
) -> npt.NDArray[np.float32]:
    """Embeddings float32 [N, 128]: the vector at [CLS], bidirectional; ``image=False``: of the text alone."""
    import torch

    ids = torch.from_numpy(encode_captions(captions))
    bert: Any = model.text_decoder.bert
    with torch.inference_mode():
        cross = {"encoder_hidden_states": model.vision_model(pixels).last_hidden_state} if image else {}
        states = bert(input_ids=ids, attention_mask=(ids != PAD).long(), is_decoder=False, **cross).last_hidden_state
    return np.asarray(states[:, 0].numpy())


def measure_captioner(
    model: BlipForConditionalGeneration, clips: TrainingClips, *, batch: int = 256
) -> dict[str, float]:
    """Shares (0 … 1) of all stills with both nouns correct, the actor's noun correct, the whole caption correct."""
    true = [caption for captions in clips.captions for caption in captions]
    stills = clips.stills.reshape(-1, *clips.stills.shape[2:])
    predicted: list[str] = []
    for start in range(0, len(stills), batch):
        predicted += write_captions(model, prepare_stills(stills[start : start + batch]))
    nouns = list(zip(map(caption_nouns, true), map(caption_nouns, predicted), strict=True))
    return {
        "frames": float(len(true)),
        "nouns": float(np.mean([ours == theirs for theirs, ours in nouns])),
        "actor": float(np.mean([ours[:1] == theirs[:1] for theirs, ours in nouns])),
        "caption": float(np.mean([ours == theirs for theirs, ours in zip(true, predicted, strict=True)])),
    }
