"""Specifications of a bundle's graphs: which module each is exported from, with which tensors and axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.bundle.graph_records import AxisRange, GraphUse, Precision, Tensor
from ...runtime.bundle.manifest import FramePreprocessing, TextShape, layer_names
from ..networks.blip import text_module, text_shape, vision_module, words_module
from ..networks.clip import clip_module
from ..networks.frame_bytes import bytes_module
from ..networks.reference import VideoForm, VideoNetwork
from ..networks.slow_i3d import keyframe_module, keyframe_width

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BlipForConditionalGeneration

MAX_NEW_TOKENS = 20  # of a caption (paper section 5.1; docs/paper.md, reading 1)
MAX_TOKENS = 64  # of an encoded caption: its decoded text may fall into more pieces than were generated
CAPTION_TOKENS = 12  # of a usual caption, with its start and end
CANDIDATES = 32  # frames among which keyframes are picked
KEYFRAME_CLIPS = 16  # clips whose candidates one run of graph ``keyframes`` may take

BATCH = AxisRange(1, 16, 128)  # clips in one run; an engine may be built for fewer (EngineOptions.max_batch)


@dataclass(frozen=True, eq=False)
class GraphSpec:
    """A graph to export: its module, with the names and shapes that runtime/bundle/manifest.py promises."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    axes: Mapping[str, AxisRange]
    precision: Precision = "fp32"
    uses: tuple[GraphUse, ...] = ()
    frames: FramePreprocessing | None = None  # of the frames that enter as bytes; ``module`` sees them normalised
    own: bool = False  # of an encoder of the exporter's own: what fails is no bug of this program

    def whole_module(self) -> nn.Module:
        """The module that is exported: ``module``, its frames normalised where they enter as bytes."""
        return self.module if self.frames is None else bytes_module(self.module, self.frames)


def vision_spec(model: BlipForConditionalGeneration, frames: FramePreprocessing) -> GraphSpec:
    patches = image_patches(model)
    return GraphSpec(
        "vision",
        vision_module(model),
        (Tensor("pixels", "uint8", ("batch", frames.size, frames.size, 3)),),
        cross_tensors(text_shape(model), patches),
        {"batch": BATCH},
        frames=frames,
    )


def text_spec(model: BlipForConditionalGeneration, longest: int = MAX_NEW_TOKENS) -> GraphSpec:
    """Specification of graph ``text``; ``longest``: new tokens of a caption."""
    shape, patches, window = text_shape(model), image_patches(model), max(longest - 1, 0)
    inputs = (
        Tensor("token_ids", "int64", ("batch", "tokens")),
        Tensor("positions", "int64", ("batch", "tokens")),
        Tensor("mask", "float32", ("batch", 1, "tokens", "past + tokens")),
        *_cache_tensors("past", shape),
        *cross_tensors(shape, "patches"),
    )
    outputs = (
        Tensor("next_token", "int64", ("batch",)),
        Tensor("logits", "float32", ("batch", shape.vocabulary)),
        Tensor("hidden", "float32", ("batch", "tokens", shape.width)),
        *_cache_tensors("present", shape),
    )
    axes = {
        "batch": BATCH,
        "tokens": AxisRange(1, 1, MAX_TOKENS),
        "past": AxisRange(0, window, MAX_TOKENS),
        "patches": AxisRange(patches, patches, patches),
    }
    return GraphSpec("text", text_module(model), inputs, outputs, axes, uses=_text_uses(axes, window))


def _text_uses(axes: Mapping[str, AxisRange], window: int) -> tuple[GraphUse, ...]:
    """A caption step of a batch, the reading of a batch of captions, and all that is left: one clip at a time.

    A reading has no past. Its range allows one position all the same: with one that allowed 0 alone, TensorRT 10.13
    and 10.14 failed to build an engine (https://github.com/NVIDIA/TensorRT-Edge-LLM/issues/192).
    """
    step = {**axes, "tokens": AxisRange(1, 1, 1), "past": AxisRange(window, window, window)}
    read = {**axes, "tokens": AxisRange(1, CAPTION_TOKENS, MAX_TOKENS), "past": AxisRange(0, 0, 1)}
    one = {**axes, "batch": AxisRange(1, 1, BATCH.largest)}
    return GraphUse("step", step), GraphUse("read", read), GraphUse("one", one)


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
        {"batch": BATCH, "tokens": AxisRange(1, CAPTION_TOKENS, MAX_TOKENS)},
    )


def clip_spec(model: Any, captions: torch.Tensor, frames: FramePreprocessing) -> GraphSpec:
    """Specification of graph ``clip``.

    ``model``: a ``CLIPModel``; ``captions``: the vectors of its captions, float32 [N, w].
    """
    return GraphSpec(
        "clip",
        clip_module(model, captions),
        (Tensor("pixels", "uint8", ("batch", frames.size, frames.size, 3)),),
        (
            Tensor("vector", "float32", ("batch", 2 * int(captions.shape[1]))),
            Tensor("caption_index", "int64", ("batch",)),
        ),
        {"batch": BATCH},
        frames=frames,
    )


def cnn_spec(
    network: VideoNetwork, net: nn.Module, form: VideoForm, frames: FramePreprocessing, graph: str = "cnn"
) -> GraphSpec:
    return GraphSpec(
        graph,
        network.module(net, form.frames),
        (Tensor("frames", "uint8", ("batch", form.frames, frames.size, frames.size, 3)),),
        (Tensor("embedding", "float32", ("batch", form.width)),),
        {"batch": BATCH},
        frames=frames,
        own=network.name == "encoder",
    )


def keyframe_spec(net: nn.Module, frames: FramePreprocessing) -> GraphSpec:
    """Specification of graph ``keyframes``; ``net``: Slow. Rows are frames, of one clip or of several.

    They enter as bytes where ``frames`` gives bytes, otherwise normalised by the host.
    """
    size = frames.size
    kind, sizes = ("uint8", (size, size, 3)) if frames.gives_bytes else ("float32", (3, size, size))
    several = AxisRange(1, KEYFRAME_CLIPS * CANDIDATES, KEYFRAME_CLIPS * CANDIDATES)
    one = AxisRange(1, CANDIDATES, CANDIDATES)
    return GraphSpec(
        "keyframes",
        keyframe_module(net),
        (Tensor("frames", kind, ("frames", *sizes)),),
        (Tensor("features", "float32", ("frames", keyframe_width(net))),),
        {"frames": several},
        uses=(GraphUse("one", {"frames": one}), GraphUse("several", {"frames": several})),
        frames=frames if frames.gives_bytes else None,
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


def _cache_tensors(prefix: str, shape: TextShape) -> tuple[Tensor, ...]:
    sizes = ("batch", shape.heads, "past", shape.head_dim)
    return tuple(Tensor(name, "float32", sizes) for name in layer_names(prefix, shape.layers))
