"""Slow and I3D: PyTorchVideo's ``slow_r50`` (https://arxiv.org/abs/1812.03982) and ``i3d_r50``
(https://arxiv.org/abs/1705.07750), 8 frames, exported as modules that only see tensors.

Stem and stages come first in their ``blocks``, the head last; of Slow, stem to res3 are ``blocks[0]`` to ``blocks[2]``
and make the keyframe features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .per_frame import early_layers, frame_layers
from .preprocessing import pytorchvideo_frames
from .reference import VideoForm, VideoNetwork, import_pytorchvideo, inputs_of, unset

if TYPE_CHECKING:
    from torch import Tensor, nn

FRAMES = 8  # that Slow and I3D see (SLOW_8x8, I3D_8x8), and clusters from which a captioned frame is drawn
SLOW_R50_FORM = VideoForm(frames=FRAMES, crop=256, width=2048, keyframe_size=112)
SLOW_TINY_FORM = VideoForm(frames=FRAMES, crop=112, width=2048, keyframe_size=64)
I3D_R50_FORM = VideoForm(frames=FRAMES, crop=224, width=2048)
I3D_TINY_FORM = VideoForm(frames=FRAMES, crop=112, width=2048)


def build_slow_r50() -> nn.Module:
    """PyTorchVideo's ``slow_r50`` with its 400 Kinetics classes: 32,454,096 parameters, not set."""
    return _from_hub("slow_r50")


def build_i3d_r50() -> nn.Module:
    """PyTorchVideo's ``i3d_r50`` with its 400 Kinetics classes: 28,043,472 parameters, not set."""
    return _from_hub("i3d_r50")


def _from_hub(name: str) -> nn.Module:
    import torch

    hub = import_pytorchvideo("models.hub")
    with torch.device("meta"):
        net: nn.Module = getattr(hub, name)(pretrained=False)
    return unset(net)


def zoo_url(name: str) -> str:
    """URL of the published weights of ``name``, as PyTorchVideo states it."""
    return str(import_pytorchvideo("models.hub.resnet").checkpoint_paths[name])


@dataclass(frozen=True)
class Stage:
    """One residual stage of bottleneck blocks."""

    dim_in: int
    dim_inner: int
    dim_out: int
    spans: tuple[int, ...]  # per block: frames that its first convolution sees
    stride: int  # in space


def build_slow_tiny() -> nn.Module:
    """Stem, four stages and head as in ``slow_r50``, narrow, 2048 features at the end, 112 px input, weights not set.

    112 px become 4 x 4 positions: four 3 x 3 windows, as ``slow_r50`` has four 7 x 7 windows at 256 px.
    """
    import torch

    stages = (
        Stage(16, 16, 64, spans=(1,), stride=1),
        Stage(64, 32, 128, spans=(1,), stride=2),
        Stage(128, 48, 192, spans=(3, 3), stride=2),
        Stage(192, 64, 2048, spans=(3, 3), stride=2),
    )
    with torch.device("meta"):
        net = bottleneck_net(stages, stem_span=1, window=(FRAMES, 3, 3), classes=400)
    return unset(net)


def build_i3d_tiny() -> nn.Module:
    """Stem, four stages, pooling in time after the first and head as in ``i3d_r50``, narrow, 112 px input."""
    import torch

    stages = (
        Stage(16, 16, 64, spans=(3,), stride=1),
        Stage(64, 32, 128, spans=(3,), stride=2),
        Stage(128, 48, 192, spans=(3,), stride=2),
        Stage(192, 64, 2048, spans=(1,), stride=2),
    )
    with torch.device("meta"):
        net = bottleneck_net(stages, stem_span=5, window=(FRAMES // 2, 4, 4), classes=400, pool_after_first=True)
    return unset(net)


def bottleneck_net(
    stages: tuple[Stage, ...],
    *,
    stem_span: int,
    window: tuple[int, int, int],
    classes: int,
    pool_after_first: bool = False,
) -> nn.Module:
    """A network of PyTorchVideo's stem, bottleneck stages and head, which pools ``window`` (frames, height, width)."""
    from torch import nn

    resnet, head, net = (import_pytorchvideo(f"models.{name}") for name in ("resnet", "head", "net"))
    stem = import_pytorchvideo("models.stem").create_res_basic_stem(
        in_channels=3,
        out_channels=stages[0].dim_in,
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
        blocks.append(
            resnet.create_res_stage(
                depth=len(stage.spans),
                dim_in=stage.dim_in,
                dim_inner=stage.dim_inner,
                dim_out=stage.dim_out,
                bottleneck=resnet.create_bottleneck_block,
                conv_a_kernel_size=[(span, 1, 1) for span in stage.spans],
                conv_a_stride=(1, 1, 1),
                conv_a_padding=[(span // 2, 0, 0) for span in stage.spans],
                conv_b_kernel_size=(1, 3, 3),
                conv_b_stride=(1, stage.stride, stage.stride),
                conv_b_padding=(0, 1, 1),
            )
        )
        if pool_after_first and stage is stages[0]:
            blocks.append(nn.MaxPool3d(kernel_size=(2, 1, 1), stride=(2, 1, 1)))
    blocks.append(
        head.create_res_basic_head(in_features=stages[-1].dim_out, out_features=classes, pool_kernel_size=window)
    )
    return net.Net(blocks=nn.ModuleList(blocks))  # type: ignore[no-any-return]


def pooled_module(net: nn.Module) -> nn.Module:
    """frames float32 [B, K, 3, S, S] -> embedding float32 [B, width] (paper eq. 7).

    The input of the last dense layer, averaged over the positions that the head pools to: four
    windows of 7 x 7 for ``slow_r50`` at 256 px, which is another vector than the global mean.
    """
    from torch import nn

    blocks: Any = net.blocks

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*blocks[:-1])
            self.pool = blocks[-1].pool

        def forward(self, frames: Tensor) -> Tensor:
            maps = self.backbone(frames.transpose(1, 2))
            return self.pool(maps).mean(dim=(2, 3, 4))  # type: ignore[no-any-return]

    return Pooled().eval()


def slow_module(net: nn.Module, frames: int) -> nn.Module:
    """``pooled_module`` of clips of ``frames`` frames, computed frame by frame where the layers allow it."""
    from torch import nn

    blocks: Any = net.blocks
    found = frame_layers(nn.Sequential(*blocks[:-1]), frames)
    if found is None:
        return pooled_module(net)
    flat: nn.Module = found

    class PooledFrames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = flat
            self.pool = blocks[-1].pool

        def forward(self, clips: Tensor) -> Tensor:
            maps: Tensor = self.backbone(clips.flatten(0, 1))  # [B · frames, C, h, w]
            maps = maps.reshape(-1, frames, *maps.shape[1:]).transpose(1, 2)
            return self.pool(maps).mean(dim=(2, 3, 4))  # type: ignore[no-any-return]

    return PooledFrames().eval()


def before_proj(net: nn.Module, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Input of the last dense layer in PyTorchVideo's own forward, averaged over its positions: the reference."""
    blocks: Any = net.blocks
    (seen,) = inputs_of(blocks[-1].proj, net, frames)
    return seen.mean(dim=(1, 2, 3)).numpy()


def keyframe_module(net: nn.Module) -> nn.Module:
    """frames float32 [N, 3, S, S] -> features float32 [N, C]: stem, res2, res3, mean over positions.

    Raises DataError when one of these layers reads more than one frame at a time: its features
    would then depend on a frame's neighbours.
    """
    from torch import nn

    blocks: Any = net.blocks

    class Keyframes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early = nn.Sequential(*(early_layers(block) for block in blocks[:3]))

        def forward(self, frames: Tensor) -> Tensor:
            return self.early(frames).mean(dim=(2, 3))  # type: ignore[no-any-return]

    return Keyframes().eval()


def keyframe_width(net: nn.Module) -> int:
    """Channels of res3's output: 512 for ``slow_r50``."""
    blocks: Any = net.blocks
    return int(blocks[2].res_blocks[-1].branch2.conv_c.out_channels)


_WINDOWS = "mean over the positions that the head pools to"
SLOW = VideoNetwork(
    name="slow",
    full=lambda: (build_slow_r50(), SLOW_R50_FORM),
    tiny=lambda: (build_slow_tiny(), SLOW_TINY_FORM),
    module=slow_module,
    reference=before_proj,
    preprocessing=pytorchvideo_frames,
    pooling=f"{_WINDOWS} (slow_r50: four 7 x 7 windows)",
)
I3D = VideoNetwork(
    name="i3d",
    full=lambda: (build_i3d_r50(), I3D_R50_FORM),
    tiny=lambda: (build_i3d_tiny(), I3D_TINY_FORM),
    module=lambda net, _frames: pooled_module(net),
    reference=before_proj,
    preprocessing=pytorchvideo_frames,
    pooling=f"{_WINDOWS} (i3d_r50: one 7 x 7 window)",
)
