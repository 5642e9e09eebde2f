"""PyTorchVideo's networks as modules that only see tensors: the embedding of Slow or I3D, Slow's keyframe features.

Stem and stages come first in their ``blocks``, the head last; of Slow, stem to res3 are ``blocks[0]`` to ``blocks[2]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..graphs.per_frame import early_layers, frame_layers

if TYPE_CHECKING:
    from torch import Tensor, nn


def pooled_module(net: nn.Module) -> nn.Module:
    """frames float32 [B, 3, K, S, S] -> embedding float32 [B, width] (paper eq. 7).

    What enters the last dense layer, averaged over the positions that the head pools to: four
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
            return self.pool(self.backbone(frames)).mean(dim=(2, 3, 4))  # type: ignore[no-any-return]

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
            maps: Tensor = self.backbone(clips.transpose(1, 2).flatten(0, 1))  # [B · frames, C, h, w]
            maps = maps.reshape(-1, frames, *maps.shape[1:]).transpose(1, 2)
            return self.pool(maps).mean(dim=(2, 3, 4))  # type: ignore[no-any-return]

    return PooledFrames().eval()


def before_proj(net: nn.Module, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The reference: what enters the last dense layer in PyTorchVideo's own forward, averaged over its positions."""
    blocks: Any = net.blocks
    (seen,) = inputs_of(blocks[-1].proj, net, frames)
    return seen.mean(dim=(1, 2, 3)).numpy()


def inputs_of(layer: nn.Module, net: nn.Module, frames: npt.NDArray[np.float32]) -> list[Tensor]:
    """What ``layer`` is given while ``net`` runs on ``frames``, one tensor per call."""
    import torch

    seen: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            net(torch.from_numpy(frames))
    finally:
        hook.remove()
    return seen


def keyframe_module(net: nn.Module) -> nn.Module:
    """frames float32 [N, 3, S, S] -> features float32 [N, C]: stem, res2, res3, mean over positions.

    Raises DataError when one of these layers looks at more than one frame at a time: its features
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
    """Channels that res3 gives: 512 for ``slow_r50``."""
    blocks: Any = net.blocks
    return int(blocks[2].res_blocks[-1].branch2.conv_c.out_channels)
