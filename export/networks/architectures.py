"""The networks that a bundle is made of, as the reference libraries build them, without weights.

BLIP is Hugging Face's ``BlipForConditionalGeneration`` (https://arxiv.org/abs/2201.12086), Slow and I3D
are PyTorchVideo's ``slow_r50`` (https://arxiv.org/abs/1812.03982) and ``i3d_r50``
(https://arxiv.org/abs/1705.07750); clip.py, resnet3d.py and videomae.py have the others. The tiny ones
have the same parts, names and output widths, but few layers, for tests and the demo.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ...base.errors import MissingExtra

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration

N = TypeVar("N", bound="nn.Module")

VOCABULARY = 30_524  # BERT uncased's 30,522 words and BLIP's [DEC] and [ENC]
FRAMES = 8  # that Slow and I3D see (SLOW_8x8, I3D_8x8), and clusters from which a captioned frame is drawn

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


@dataclass(frozen=True)
class VideoForm:
    """Sizes of what a spatio-temporal network reads and gives."""

    frames: int  # per clip
    crop: int  # pixels, of a frame
    width: int  # of the embedding
    keyframe_size: int = 0  # pixels, of the frames among which keyframes are picked; Slow's alone


SLOW_R50_FORM = VideoForm(frames=FRAMES, crop=256, width=2048, keyframe_size=112)
SLOW_TINY_FORM = VideoForm(frames=FRAMES, crop=112, width=2048, keyframe_size=64)
I3D_R50_FORM = VideoForm(frames=FRAMES, crop=224, width=2048)
I3D_TINY_FORM = VideoForm(frames=FRAMES, crop=112, width=2048)


def build_blip(config: dict[str, Any]) -> BlipForConditionalGeneration:
    """A BLIP captioner of that configuration, in evaluation mode; its weights are not set."""
    try:
        import torch
        from transformers import BlipConfig, BlipForConditionalGeneration
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", extra="export") from error

    with torch.device("meta"):  # the library's own initialisation takes 29 s, and is thrown away
        # Eager attention is the arithmetic of the paper's code, and what parity is measured against.
        model = BlipForConditionalGeneration._from_config(BlipConfig(**config), attn_implementation="eager")
    model = unset(model)
    model.tie_weights()
    embeddings = model.text_decoder.bert.embeddings  # its one buffer is not in checkpoints
    embeddings.position_ids.copy_(torch.arange(embeddings.position_ids.shape[-1]))
    return model


def build_slow_r50() -> nn.Module:
    """PyTorchVideo's ``slow_r50`` with its 400 Kinetics classes: 32,454,096 parameters, not set."""
    import torch

    hub = _pytorchvideo("models.hub")
    with torch.device("meta"):
        net: nn.Module = hub.slow_r50(pretrained=False)
    return unset(net)


def build_i3d_r50() -> nn.Module:
    """PyTorchVideo's ``i3d_r50`` with its 400 Kinetics classes: 28,043,472 parameters, not set."""
    import torch

    hub = _pytorchvideo("models.hub")
    with torch.device("meta"):
        net: nn.Module = hub.i3d_r50(pretrained=False)
    return unset(net)


def zoo_url(name: str) -> str:
    """Where PyTorchVideo says that the published weights of ``name`` are."""
    return str(_pytorchvideo("models.hub.resnet").checkpoint_paths[name])


def build_slow_tiny() -> nn.Module:
    """Stem, four stages and head as in ``slow_r50``, narrow, 2048 features at the end, 112 px input.

    112 px become 4 x 4 positions: four 3 x 3 windows, as ``slow_r50`` has four 7 x 7 windows at 256 px.
    """
    import torch

    stages = (_Stage(1, 16, 16, 64), _Stage(1, 64, 32, 128), _Stage(2, 128, 48, 192, 3), _Stage(2, 192, 64, 2048, 3))
    with torch.device("meta"):
        net = _bottleneck_net(stages, stem_span=1, window=(FRAMES, 3, 3))
    return unset(net)


def build_i3d_tiny() -> nn.Module:
    """Stem, four stages, pooling in time after the first and head as in ``i3d_r50``, narrow, 112 px input."""
    import torch

    stages = (_Stage(1, 16, 16, 64, 3), _Stage(1, 64, 32, 128, 3), _Stage(1, 128, 48, 192, 3), _Stage(1, 192, 64, 2048))
    with torch.device("meta"):
        net = _bottleneck_net(stages, stem_span=5, window=(FRAMES // 2, 4, 4), pool_after_first=True)
    return unset(net)


def unset(net: N) -> N:
    """``net``, built without memory, with memory for its weights; only norms' batch counts are set, to zero."""
    net = net.to_empty(device="cpu").eval()
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    return net


@dataclass(frozen=True)
class _Stage:
    """One residual stage of a tiny network; all but the first halve their frames' sides."""

    blocks: int
    channels_in: int
    inner: int
    out: int
    span: int = 1  # frames that each block's first convolution sees


def _bottleneck_net(
    stages: tuple[_Stage, ...], *, stem_span: int, window: tuple[int, int, int], pool_after_first: bool = False
) -> nn.Module:
    from torch import nn

    resnet, head, net = (_pytorchvideo(f"models.{name}") for name in ("resnet", "head", "net"))
    stem = _pytorchvideo("models.stem").create_res_basic_stem(
        in_channels=3,
        out_channels=stages[0].channels_in,
        conv_kernel_size=(stem_span, 7, 7),
        conv_stride=(1, 2, 2),
        conv_padding=(stem_span // 2, 3, 3),
        pool=nn.MaxPool3d,
        pool_kernel_size=(1, 3, 3),
        pool_stride=(1, 2, 2),
        pool_padding=(0, 1, 1),
        norm=nn.BatchNorm3d,
        activation=nn.ReLU,
    )
    blocks = [stem]
    for stage in stages:
        stride = 1 if stage is stages[0] else 2
        blocks.append(
            resnet.create_res_stage(
                depth=stage.blocks,
                dim_in=stage.channels_in,
                dim_inner=stage.inner,
                dim_out=stage.out,
                bottleneck=resnet.create_bottleneck_block,
                conv_a_kernel_size=(stage.span, 1, 1),
                conv_a_stride=(1, 1, 1),
                conv_a_padding=(stage.span // 2, 0, 0),
                conv_b_kernel_size=(1, 3, 3),
                conv_b_stride=(1, stride, stride),
                conv_b_padding=(0, 1, 1),
            )
        )
        if pool_after_first and stage is stages[0]:
            blocks.append(nn.MaxPool3d(kernel_size=(2, 1, 1), stride=(2, 1, 1)))
    blocks.append(head.create_res_basic_head(in_features=stages[-1].out, out_features=400, pool_kernel_size=window))
    return net.Net(blocks=nn.ModuleList(blocks))  # type: ignore[no-any-return]


def _pytorchvideo(module: str) -> Any:
    """Import ``pytorchvideo.<module>``; its helper fvcore still compiles with the deprecated torch.jit.script."""
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return importlib.import_module(f"pytorchvideo.{module}")
        except ImportError as error:
            raise MissingExtra("pytorchvideo", extra="export") from error


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(as Table 1 counts, each stored value once).

    The paper's table counts BLIP's word embedding and its tied output projection as two matrices.
    """
    stored = sum(parameter.numel() for parameter in model.parameters())
    word_embedding = getattr(model, "get_input_embeddings", None)
    decoder = getattr(model, "text_decoder", None)
    if word_embedding is None or decoder is None:
        return stored, stored
    projection = decoder.get_output_embeddings().weight
    tied = projection is word_embedding().weight
    return stored + (projection.numel() if tied else 0), stored
