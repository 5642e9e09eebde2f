"""Training of the small BLIP on the mini-world's frames and true captions.

The loss is that of ``BlipForConditionalGeneration``: the caption's next token, teacher-forced. Two more
make a small network learn in minutes; both have heads that are thrown away. One asks each patch what
covers it. The other asks the vector at [CLS], read as the embedding is (docs/paper.md, reading 1: the caption
with the frame, every token seeing every other), which two objects there are, as BLIP's own pretraining
trains that vector by image-text matching (https://arxiv.org/abs/2201.12086).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from ...base.progress import Progress
from ...export.graphs.spec import MAX_NEW_TOKENS
from ...export.networks.preprocessing import CLIP_MEAN, CLIP_STD
from ...export.networks.small import SMALL_FORMS, build_small_blip
from ...export.weights.tokenizer import small_tokenizer
from ...export.weights.vocabulary import PAD, SEP, SMALL_DEC
from ..miniworld.plan import caption_nouns
from ..miniworld.videos import OBJECTS
from .clips import STILL_SIZE, Footage

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BlipForConditionalGeneration

SMALLEST_CROP = 88  # pixels of a still that training looks at, at least
SHADE = 0.1  # by which brightness and each colour channel may change


@dataclass(frozen=True)
class CaptionerSettings:
    looking: int = 1500  # steps of the loss on patches alone, which are cheap
    steps: int = 1800  # steps of all losses after them
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: int = 150  # steps
    seed: int = 0
    patches: float = 0.5  # weight of the loss on patches
    nouns: float = 0.2  # weight of the loss at [CLS]


def train_captioner(
    footage: Footage, settings: CaptionerSettings, *, progress: Progress | None = None
) -> BlipForConditionalGeneration:
    """A small BLIP, trained on all stills of ``footage``; ``progress``: one step per batch."""
    import torch
    from torch.nn import functional

    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    model: Any = build_small_blip().train()
    place_patches(model.vision_model.embeddings.position_embedding)
    width = model.config.vision_config.hidden_size
    heads = torch.nn.ModuleDict(
        {"patches": torch.nn.Linear(width, 2 * len(OBJECTS) + 1), "nouns": torch.nn.Linear(width, 2 * len(OBJECTS))}
    )
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, warm_cosine(settings.warm_up, settings.looking + settings.steps)
    )
    tokens = encode_captions([caption for clip in footage.captions for caption in clip])
    stills = footage.stills.reshape(-1, *footage.stills.shape[2:])
    places = footage.places.reshape(-1, 2, 4)
    kinds = np.repeat(footage.kinds, footage.stills.shape[1], axis=0)

    weight = torch.ones(2 * len(OBJECTS) + 1)
    weight[-1] = 0.2  # most of a frame is nothing
    for step in range(settings.looking + settings.steps):
        rows = random.integers(len(stills), size=settings.batch)
        pixels, seen = augment_stills(stills[rows], places[rows], random)
        kind = torch.from_numpy(kinds[rows])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = model.vision_model(pixels).last_hidden_state
            covered = patch_targets(seen, kind, image.shape[1] - 1)
            guess = heads["patches"](image[:, 1:]).flatten(0, 1).float()
            loss = settings.patches * functional.cross_entropy(guess, covered.flatten(), weight=weight)
            if step >= settings.looking:
                ids = torch.from_numpy(tokens[rows])
                loss = loss + _language_loss(model, image, ids)
                if step % 2:
                    loss = loss + settings.nouns * _noun_loss(model, heads["nouns"], image, ids, kind)
        check_loss(loss, "blip")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress.advance()
    return model.eval()


def check_loss(loss: Tensor, name: str) -> None:
    """Raise InvariantError when a training has left the finite numbers: it never comes back from there."""
    if not bool(loss.isfinite()):
        raise InvariantError(f"the training of '{name}' gave a loss of {loss.item()}, expected a finite one")


def _language_loss(model: Any, image: Tensor, ids: Tensor) -> Tensor:
    """Of the next token, after [SMALL_DEC] in the place of [CLS], as the library computes it."""
    import torch

    spoken = torch.where(torch.arange(ids.shape[1]) == 0, SMALL_DEC, ids)
    labels = spoken.masked_fill(ids == PAD, -100)
    mask = (ids != PAD).long()
    said = model.text_decoder(
        input_ids=spoken, labels=labels, attention_mask=mask, encoder_hidden_states=image, reduction="mean"
    )
    return said.loss  # type: ignore[no-any-return]


def _noun_loss(model: Any, head: Any, image: Tensor, ids: Tensor, kinds: Tensor) -> Tensor:
    """Of both objects' kinds, told from the vector at [CLS] of caption and frame."""
    from torch.nn import functional

    mask = (ids != PAD).long()
    states = model.text_decoder.bert(
        input_ids=ids, attention_mask=mask, encoder_hidden_states=image, is_decoder=False
    ).last_hidden_state
    named = head(states[:, 0]).float().view(-1, len(OBJECTS))
    return functional.cross_entropy(named, kinds.flatten())


def place_patches(positions: Tensor) -> None:
    """Start an image transformer's position vectors [1, 1 + side * side, width] as two-dimensional sines.

    Neighbours are then alike from the first step (https://arxiv.org/abs/2205.01580); it learns on from there.
    """
    import torch

    side, quarter = round((positions.shape[-2] - 1) ** 0.5), positions.shape[-1] // 4
    angles = torch.arange(side)[:, None] * 100.0 ** (-torch.arange(quarter) / quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    with torch.no_grad():
        positions[..., 1:, :] = 0.5 * torch.cat([rows, columns], dim=2).reshape(side * side, -1)


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
    """Greedy captions of prepared frames float32 [N, 3, 96, 96], as the runtime decodes them."""
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
    said = []
    for row in ids[:, 1:].tolist():
        said.append(tokenizer.decode(row[: row.index(SEP)] if SEP in row else row, skip_special_tokens=True))
    return said


def embed_frames(
    model: BlipForConditionalGeneration, pixels: Tensor, captions: Sequence[str], *, image: bool = True
) -> npt.NDArray[np.float32]:
    """float32 [N, 128]: the vector at [CLS], bidirectional; ``image=False``: the text alone."""
    import torch

    ids = torch.from_numpy(encode_captions(captions))
    bert: Any = model.text_decoder.bert
    with torch.inference_mode():
        seen = {"encoder_hidden_states": model.vision_model(pixels).last_hidden_state} if image else {}
        states = bert(input_ids=ids, attention_mask=(ids != PAD).long(), is_decoder=False, **seen).last_hidden_state
    return np.asarray(states[:, 0].numpy())


def prepare_stills(stills: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, 96, 96] as the small BLIP reads them, nothing cut off."""
    return _normalised(_resized(_channels_first(stills)))


def measure_captioner(model: BlipForConditionalGeneration, footage: Footage, *, batch: int = 256) -> dict[str, float]:
    """Shares (0 … 1) of all stills: both nouns right, the actor's, the whole caption."""
    true = [caption for clip in footage.captions for caption in clip]
    stills = footage.stills.reshape(-1, *footage.stills.shape[2:])
    said: list[str] = []
    for start in range(0, len(stills), batch):
        said += write_captions(model, prepare_stills(stills[start : start + batch]))
    pairs = list(zip(map(caption_nouns, true), map(caption_nouns, said), strict=True))
    return {
        "frames": float(len(true)),
        "nouns": float(np.mean([told == given for given, told in pairs])),
        "actor": float(np.mean([told[:1] == given[:1] for given, told in pairs])),
        "caption": float(np.mean([told == given for given, told in zip(true, said, strict=True)])),
    }


def patch_targets(places: Tensor, kinds: Tensor, patches: int) -> Tensor:
    """int64 [B, patches]: what covers each patch: the actor's kind, 5 + the distractor's, or 10 for nothing.

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


def augment_stills(
    stills: npt.NDArray[np.uint8], places: npt.NDArray[np.float32], random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A crop of the same size and place for the whole batch, shades of their own; and where things are in it."""
    import torch

    size = int(random.integers(SMALLEST_CROP, STILL_SIZE + 1))
    left, top = _jitter(STILL_SIZE - size, random), _jitter(STILL_SIZE - size, random)
    pixels = _resized(_channels_first(stills[:, top : top + size, left : left + size]))
    gains = random.uniform(1 - SHADE, 1 + SHADE, size=(len(stills), 1, 1, 1)) * random.uniform(
        1 - SHADE / 2, 1 + SHADE / 2, size=(len(stills), 3, 1, 1)
    )
    pixels = (pixels * torch.from_numpy(gains.astype(np.float32))).clamp(0, 255)
    start = np.array([left, top, 0, 0], dtype=np.float32)
    seen = (places * STILL_SIZE - start) / np.float32(size)
    return _normalised(pixels), torch.from_numpy(seen.astype(np.float32))


def _jitter(room: int, random: np.random.Generator) -> int:
    """A start about the middle of ``room``: at most 8 pixels off."""
    return int(np.clip(room // 2 + random.integers(-8, 9), 0, room))


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


def warm_cosine(warm_up: int, steps: int) -> Any:
    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return float(0.5 * (1 + np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up))))

    return rate
