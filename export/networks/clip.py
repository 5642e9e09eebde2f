"""CLIP with captions that were written beforehand (docs/paper.md, reading 10): Hugging Face's ``CLIPModel``.

The published network is ViT-B/32 (https://arxiv.org/abs/2103.00020): the parameters that the paper
prints are its, not those of ViT-L/14 that its text names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra
from ...base.files import read_regular
from .reference import unset

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_CAPTIONS = 16 << 20  # bytes of a file of captions
# config.json of openai/clip-vit-base-patch32, the fields that decide the network's form.
CLIP_BASE_CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 512,
    "text_config": {
        "vocab_size": 49_408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "projection_dim": 512,
        "bos_token_id": 49_406,
        "eos_token_id": 49_407,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "projection_dim": 512,
    },
}
CLIP_TINY_CONFIG: dict[str, Any] = {
    **CLIP_BASE_CONFIG,
    "text_config": {
        **CLIP_BASE_CONFIG["text_config"],
        "vocab_size": 30_524,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "vision_config": {
        **CLIP_BASE_CONFIG["vision_config"],
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 16,
    },
}


def build_clip(config: dict[str, Any]) -> Any:
    """A ``CLIPModel`` of that configuration, in evaluation mode; its weights are not set."""
    try:
        import torch
        from transformers import CLIPConfig, CLIPModel
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", extra="export") from error
    with torch.device("meta"):
        model = CLIPModel._from_config(CLIPConfig(**config), attn_implementation="eager")
    model = unset(model)
    for tower in (model.text_model, model.vision_model):  # buffers that are not in checkpoints
        position_ids = tower.embeddings.position_ids
        position_ids.copy_(torch.arange(position_ids.shape[-1]))
    return model


def clip_module(model: Any, captions: Tensor) -> nn.Module:
    """pixels [B, 3, S, S], normalised -> (vector [B, 2 w], caption_index [B]); ``captions`` float32 [N, w] become
    constants."""
    import torch
    from torch import nn

    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = model.vision_model
            self.projection = model.visual_projection
            self.captions = nn.Buffer(captions)
            self.directions = nn.Buffer((captions / captions.norm(dim=-1, keepdim=True)).T.contiguous())

        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            image = self.projection(self.vision(pixels).pooler_output)
            # The nearest by cosine: the image's own length does not change which it is.
            index = torch.matmul(image, self.directions.to(image.dtype)).float().argmax(dim=-1)
            return torch.cat([image.float(), self.captions[index]], dim=-1), index

    return Clip().eval()


def encode_captions(model: Any, tokens: Sequence[Sequence[int]]) -> Tensor:
    """The text tower's projections, not normalised: float32 [N, w]. Each caption by itself, unpadded."""
    import torch

    with torch.no_grad():
        return torch.cat([_pooled(model.get_text_features(torch.tensor([list(ids)]))) for ids in tokens])


def image_vectors(model: Any, pixels: Tensor) -> Tensor:
    """The image tower's projections by the library's own forward: float32 [B, w]."""
    import torch

    with torch.no_grad():
        return _pooled(model.get_image_features(pixels))


def _pooled(features: Any) -> Tensor:
    """Before transformers 5 the projections themselves were returned."""
    return getattr(features, "pooler_output", features)  # type: ignore[no-any-return]


def tokenize_captions(tokenizer: bytes, captions: Sequence[str], config: Any) -> list[list[int]]:
    """Each caption's ids with start and end token, by the ``tokenizer.json`` of the model.

    Raises DataError for a caption that the model of ``config`` (a ``CLIPConfig``) cannot read.
    """
    from tokenizers import Tokenizer

    reader, text = Tokenizer.from_str(tokenizer.decode()), config.text_config
    tokens = []
    for caption in captions:
        ids = reader.encode(caption).ids
        if not 3 <= len(ids) <= text.max_position_embeddings:
            raise DataError(
                f"caption {caption!r} has {len(ids)} tokens, expected 3 to {text.max_position_embeddings}",
                fix="write it shorter, or leave it out",
            )
        if max(ids) >= text.vocab_size or ids[0] != text.bos_token_id:
            raise DataError(
                f"caption {caption!r}: the tokenizer gives ids {ids[:3]}…, expected {text.bos_token_id} first and all "
                f"below {text.vocab_size}: it is not the model's",
                fix="give the tokenizer.json that was published with the weights",
            )
        tokens.append(ids)
    return tokens


def hash_tokens(tokens: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([list(ids) for ids in tokens], separators=(",", ":")).encode()).hexdigest()


def read_captions(path: Path) -> tuple[str, ...]:
    """Captions in the file's order, each once: a JSON object {class: caption or [captions]}, or a caption a line.

    Raises StorageError when the file cannot be read, DataError when it holds no captions.
    """
    try:
        text = read_regular(path, largest=MAX_CAPTIONS).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", fix="save the file as UTF-8") from error
    found: list[Any] = text.splitlines()
    if path.suffix == ".json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is not valid JSON: {error}", fix=f"edit {path}, or give a text file with one caption per line"
            ) from error
        values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
        found = [caption for value in values for caption in (value if isinstance(value, list) else [value])]
    if not all(isinstance(caption, str) for caption in found):
        raise DataError(
            f'{path}: expected captions as text, by class: {{"CLASS": "CAPTION", …}}',
            fix=f"edit {path}, or give a text file with one caption per line",
        )
    captions = tuple(dict.fromkeys(caption.strip() for caption in found if caption.strip()))
    if not captions:
        raise DataError(f"{path} holds no captions", fix="write one caption per class, or one a line")
    return captions
