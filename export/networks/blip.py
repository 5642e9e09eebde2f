"""BLIP: Hugging Face's ``BlipForConditionalGeneration`` (https://arxiv.org/abs/2201.12086), exported as modules
that only see tensors.

Tensor names and the mask convention: runtime/bundle/manifest.py. Cross-attention keys and values depend on
the image alone, so the vision module computes them, once per frame. One text module serves caption
prefill, caption step and bidirectional encoding: mask and positions are inputs. Past keys and values are a window that
slides: as many positions come out as went in, so a batch of captions at different lengths runs at one shape.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from ...base.errors import MissingExtra
from ...runtime.bundle.manifest import TextShape
from .reference import unset

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BlipForConditionalGeneration


VOCABULARY = 30_524  # BERT uncased's 30,522 words and BLIP's [DEC] and [ENC]

# config.json of Salesforce/blip-image-captioning-base, the fields that decide the network's form.
BLIP_BASE_CONFIG: dict[str, Any] = {
    "model_type": "blip",
    "text_config": {
        "model_type": "blip_text_model",
        "vocab_size": VOCABULARY,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "vision_config": {
        "model_type": "blip_vision_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 384,
        "patch_size": 16,
    },
}
BLIP_TINY_CONFIG: dict[str, Any] = {
    "model_type": "blip",
    "text_config": {
        **BLIP_BASE_CONFIG["text_config"],
        "intermediate_size": 768,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    },
    "vision_config": {
        **BLIP_BASE_CONFIG["vision_config"],
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 96,
    },
}


def build_blip(config: dict[str, Any]) -> BlipForConditionalGeneration:
    """A BLIP captioner of that configuration, in evaluation mode; its weights are not set."""
    try:
        import torch
        from transformers import BlipConfig, BlipForConditionalGeneration
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", extra="export") from error

    with torch.device("meta"):  # the library's own initialisation takes 29 s, and is thrown away
        # Eager attention is the arithmetic of the paper's code, and the reference of the parity check.
        model = BlipForConditionalGeneration._from_config(BlipConfig(**config), attn_implementation="eager")
    model = unset(model)
    model.tie_weights()
    embeddings = model.text_decoder.bert.embeddings  # its one buffer is not in checkpoints
    embeddings.position_ids.copy_(torch.arange(embeddings.position_ids.shape[-1]))
    return model


def text_shape(model: BlipForConditionalGeneration) -> TextShape:
    config = model.config.text_config
    return TextShape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
    )


def vision_module(model: BlipForConditionalGeneration) -> nn.Module:
    """pixels float32 [B, 3, S, S], normalised -> per text layer the cross-attention keys and values of the image."""
    from torch import nn

    shape = text_shape(model)

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model.vision_model
            sources = [layer.crossattention.self for layer in model.text_decoder.bert.encoder.layer]
            # The score's scale goes into the key's weights: nothing is left to scale per clip.
            scale = 1 / math.sqrt(shape.head_dim)
            self.keys = nn.ModuleList(_scaled(source.key, scale) for source in sources)
            self.values = nn.ModuleList(source.value for source in sources)

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            image = self.encoder(pixels).last_hidden_state
            cross: list[Tensor] = []
            for key, value in zip(self.keys, self.values, strict=True):
                cross.append(_split_heads(key(image), shape).permute(0, 2, 3, 1))
                cross.append(_split_heads(value(image), shape).permute(0, 2, 1, 3))
            return tuple(cross)

    return Vision().eval()


def text_module(model: BlipForConditionalGeneration) -> nn.Module:
    """(token_ids, positions, mask, past…, cross…) -> (next_token, logits, hidden, present…), as in the manifest.

    Queries are scaled, not scores: a runtime's fused attention wants the scale before the first product.
    """
    import torch
    from torch import nn

    shape = text_shape(model)
    per_cache, scale = 2 * shape.layers, 1 / math.sqrt(shape.head_dim)

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = model.text_decoder.bert.embeddings
            self.layers = model.text_decoder.bert.encoder.layer
            self.head = model.text_decoder.cls

        def forward(self, token_ids: Tensor, positions: Tensor, mask: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
            past, cross = caches[:per_cache], caches[per_cache:]
            embeddings = self.embeddings
            hidden = embeddings.LayerNorm(
                embeddings.word_embeddings(token_ids) + embeddings.position_embeddings(positions)
            )
            present: list[Tensor] = []
            oldest = token_ids.shape[1]  # as many positions as are new fall out of the window
            for index, layer in enumerate(self.layers):
                source = layer.attention.self
                query = _split_heads(source.query(hidden), shape).transpose(1, 2) * scale
                key = torch.cat([past[2 * index], _split_heads(source.key(hidden), shape).transpose(1, 2)], dim=2)
                value = torch.cat([past[2 * index + 1], _split_heads(source.value(hidden), shape).transpose(1, 2)], 2)
                present += [key[:, :, oldest:], value[:, :, oldest:]]
                scores = torch.matmul(query, key.transpose(2, 3)) + mask
                hidden = layer.attention.output(_merge_heads(torch.matmul(scores.softmax(-1), value), shape), hidden)

                query = _split_heads(layer.crossattention.self.query(hidden), shape).transpose(1, 2)
                scores = torch.matmul(query, cross[2 * index])
                seen = _merge_heads(torch.matmul(scores.softmax(-1), cross[2 * index + 1]), shape)
                hidden = layer.feed_forward_chunk(layer.crossattention.output(seen, hidden))
            # Two-dimensional: becomes a Gemm that reads the embedding matrix as it is, stored once.
            logits = self.head(hidden[:, -1]).float()
            return (logits.argmax(dim=-1), logits, hidden, *present)

    return Text().eval()


def words_module(model: BlipForConditionalGeneration) -> nn.Module:
    """(token_ids, positions, mask [B, 1, 1, T]) -> hidden [B, T, width]: the text decoder's BERT without an image.

    Its cross-attention is left out, as the library does when it is given no image: every token sees
    every other that the mask keeps (docs/paper.md, reading 11).
    """
    import torch
    from torch import nn

    shape = text_shape(model)
    scale = 1 / math.sqrt(shape.head_dim)

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = model.text_decoder.bert.embeddings
            self.layers = model.text_decoder.bert.encoder.layer

        def forward(self, token_ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
            embeddings = self.embeddings
            hidden = embeddings.LayerNorm(
                embeddings.word_embeddings(token_ids) + embeddings.position_embeddings(positions)
            )
            for layer in self.layers:
                source = layer.attention.self
                query, key, value = (
                    _split_heads(linear(hidden), shape).transpose(1, 2)
                    for linear in (source.query, source.key, source.value)
                )
                scores = torch.matmul(query * scale, key.transpose(2, 3)) + mask
                hidden = layer.attention.output(_merge_heads(torch.matmul(scores.softmax(-1), value), shape), hidden)
                hidden = layer.feed_forward_chunk(hidden)
            return hidden  # type: ignore[no-any-return]

    return Words().eval()


def key_values(output: Any) -> Any:
    """The keys and values in an output of the library's text model; transformers 5.24 renamed them."""
    return output["cache"] if "cache" in output else output["past_key_values"]


def resumed(cache: Any) -> dict[str, Any]:
    """The argument that gives ``cache`` (None at the start) to the library's text model."""
    from transformers import BlipTextModel

    renamed = "cache" in inspect.signature(BlipTextModel.forward).parameters
    return {"cache" if renamed else "past_key_values": cache}


def _split_heads(states: Tensor, shape: TextShape) -> Tensor:
    """[B, T, width] -> [B, T, heads, head_dim]"""
    return states.reshape(*states.shape[:-1], shape.heads, shape.head_dim)


def _merge_heads(states: Tensor, shape: TextShape) -> Tensor:
    """[B, heads, T, head_dim] -> [B, T, width]"""
    return states.transpose(1, 2).flatten(2)


def _scaled(linear: Any, scale: float) -> nn.Module:
    import torch
    from torch import nn

    scaled = nn.Linear(linear.in_features, linear.out_features, device="meta")
    with torch.no_grad():
        scaled.weight = nn.Parameter(linear.weight * scale)
        scaled.bias = nn.Parameter(linear.bias * scale)
    return scaled
