"""Specifications of a bundle's graphs: which module each is exported from, with which tensors and axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.bundle.graph_records import AxisRange, Precision, Tensor
from ...runtime.bundle.manifest import TextShape, layer_names
from ..networks.blip import text_module, text_shape, vision_module, words_module
from ..networks.clip import clip_module
from ..networks.reference import VideoForm, VideoNetwork
from ..networks.slow_i3d import keyframe_module, keyframe_width

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BlipForConditionalGeneration

MAX_NEW_TOKENS = 20  # of a caption (paper section 5.1; docs/paper.md, reading 1)
MAX_TOKENS = 64  # of an encoded caption: its decoded text may fall into more pieces than were generated
CANDIDATES = 32  # frames among which keyframes are picked

_BATCH = AxisRange(1, 1, 16)


@dataclass(frozen=True, eq=False)
class GraphSpec:
    """A graph to export: its module, with the names and shapes that runtime/bundle/manifest.py promises."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    axes: Mapping[str, AxisRange]
    precision: Precision = "fp32"


def vision_spec(model: BlipForConditionalGeneration) -> GraphSpec:
    size, patches = model.config.vision_config.image_size, image_patches(model)
    return GraphSpec(
        "vision",
        vision_module(model),
        (Tensor("pixels", "float32", ("batch", 3, size, size)),),
        cross_tensors(text_shape(model), patches),
        {"batch": _BATCH},
    )


def text_spec(model: BlipForConditionalGeneration) -> GraphSpec:
    shape, patches = text_shape(model), image_patches(model)
    inputs = (
        Tensor("token_ids", "int64", ("batch", "tokens")),
        Tensor("positions", "int64", ("batch", "tokens")),
        Tensor("mask", "float32", ("batch", 1, "tokens", "past + tokens")),
        *_cache_tensors("past", shape, "past"),
        *cross_tensors(shape, "patches"),
    )
    outputs = (
        Tensor("logits", "float32", ("batch", shape.vocabulary)),
        Tensor("hidden", "float32", ("batch", "tokens", shape.width)),
        *_cache_tensors("present", shape, "past + tokens"),
    )
    axes = {
        "batch": _BATCH,
        "tokens": AxisRange(1, 1, MAX_TOKENS),
        "past": AxisRange(0, MAX_NEW_TOKENS // 2, MAX_TOKENS),
        "patches": AxisRange(patches, patches, patches),
    }
    return GraphSpec("text", text_module(model), inputs, outputs, axes)


def words_spec(model: BlipForConditionalGeneration) -> GraphSpec:
    return GraphSpec(
        "words",
        words_module(model),
        (
            Tensor("token_ids", "int64", ("batch", "tokens")),
            Tensor("positions", "int64", ("batch", "tokens")),
            Tensor("mask", "float32", ("batch", 1, 1, "tokens")),
        ),
        (Tensor("hidden", "float32", ("batch", "tokens", text_shape(model).width)),),
        {"batch": _BATCH, "tokens": AxisRange(1, MAX_NEW_TOKENS // 2, MAX_TOKENS)},
    )


def clip_spec(model: Any, captions: torch.Tensor) -> GraphSpec:
    """Specification of graph ``clip``.

    ``model``: a ``CLIPModel``; ``captions``: the vectors of its captions, float32 [N, w].
    """
    size = model.config.vision_config.image_size
    return GraphSpec(
        "clip",
        clip_module(model, captions),
        (Tensor("pixels", "float32", ("batch", 3, size, size)),),
        (
            Tensor("vector", "float32", ("batch", 2 * int(captions.shape[1]))),
            Tensor("caption_index", "int64", ("batch",)),
        ),
        {"batch": _BATCH},
    )


def cnn_spec(network: VideoNetwork, net: nn.Module, form: VideoForm) -> GraphSpec:
    return GraphSpec(
        "cnn",
        network.module(net, form.frames),
        (Tensor("frames", "float32", ("batch", 3, form.frames, form.crop, form.crop)),),
        (Tensor("embedding", "float32", ("batch", form.width)),),
        {"batch": _BATCH},
    )


def keyframe_spec(net: nn.Module, form: VideoForm) -> GraphSpec:
    """Specification of graph ``keyframes``; ``net``, ``form``: those of Slow."""
    size = form.keyframe_size
    return GraphSpec(
        "keyframes",
        keyframe_module(net),
        (Tensor("frames", "float32", ("frames", 3, size, size)),),
        (Tensor("features", "float32", ("frames", keyframe_width(net))),),
        {"frames": AxisRange(1, CANDIDATES, 2 * CANDIDATES)},
    )


def image_patches(model: BlipForConditionalGeneration) -> int:
    """Vectors that one image becomes: its patches and the class vector."""
    config = model.config.vision_config
    return int((config.image_size // config.patch_size) ** 2 + 1)


def cross_tensors(shape: TextShape, patches: int | str) -> tuple[Tensor, ...]:
    key = ("batch", shape.heads, shape.head_dim, patches)
    value = ("batch", shape.heads, patches, shape.head_dim)
    names = layer_names("cross", shape.layers)
    return tuple(Tensor(name, "float32", key if "_key_" in name else value) for name in names)


def _cache_tensors(prefix: str, shape: TextShape, length: str) -> tuple[Tensor, ...]:
    sizes = ("batch", shape.heads, length, shape.head_dim)
    return tuple(Tensor(name, "float32", sizes) for name in layer_names(prefix, shape.layers))
