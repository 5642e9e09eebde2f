"""The four graphs of a bundle, as runtime/manifest.py promises them, over two loaded models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime.manifest import AxisRange, Tensor, TextShape
from .architectures import FRAMES, SlowForm
from .blip import layer_names, text_module, text_shape, vision_module
from .graphs import GraphPlan
from .slow import keyframe_module, keyframe_width, slow_module

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration

SLOW_WIDTH = 2048
MAX_NEW_TOKENS = 20  # of a caption (paper section 5.1; NOTES decision 1)
MAX_TOKENS = 64  # of an encoded caption: its decoded text may fall into more pieces than were generated
# As BlipImageProcessor of the published captioner prepares an image.
BLIP_MEAN, BLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# As PyTorchVideo's hub page for slow_r50 prepares a clip.
SLOW_MEAN, SLOW_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
CANDIDATES = 32  # frames among which keyframes are picked

_BATCH = AxisRange(1, 1, 16)


def vision_plan(model: BlipForConditionalGeneration) -> GraphPlan:
    size, patches = model.config.vision_config.image_size, image_patches(model)
    return GraphPlan(
        "vision",
        vision_module(model),
        (Tensor("pixels", "float32", ("batch", 3, size, size)),),
        cross_tensors(text_shape(model), patches),
        {"batch": _BATCH},
    )


def text_plan(model: BlipForConditionalGeneration) -> GraphPlan:
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
    return GraphPlan("text", text_module(model), inputs, outputs, axes)


def slow_plan(net: nn.Module, form: SlowForm) -> GraphPlan:
    return GraphPlan(
        "cnn",
        slow_module(net),
        (Tensor("frames", "float32", ("batch", 3, FRAMES, form.crop, form.crop)),),
        (Tensor("embedding", "float32", ("batch", SLOW_WIDTH)),),
        {"batch": _BATCH},
    )


def keyframe_plan(net: nn.Module, form: SlowForm) -> GraphPlan:
    size = form.keyframe_size
    return GraphPlan(
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
