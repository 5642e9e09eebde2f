"""PyTorchVideo's networks as modules that only see tensors: the embedding of Slow or I3D, Slow's keyframe features.

Stem and stages come first in their ``blocks``, the head last; of Slow, stem to res3 are ``blocks[0]`` to ``blocks[2]``.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError

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
            self.early = nn.Sequential(*(_per_frame(block) for block in blocks[:3]))

        def forward(self, frames: Tensor) -> Tensor:
            return self.early(frames).mean(dim=(2, 3))  # type: ignore[no-any-return]

    return Keyframes().eval()


def keyframe_width(net: nn.Module) -> int:
    """Channels that res3 gives: 512 for ``slow_r50``."""
    blocks: Any = net.blocks
    return int(blocks[2].res_blocks[-1].branch2.conv_c.out_channels)


def _per_frame(module: nn.Module) -> nn.Module:
    """A copy of ``module`` with its (1, k, k) layers in two dimensions."""
    flat = copy.deepcopy(module)
    for parent in list(flat.modules()):
        for name, child in list(parent.named_children()):
            replacement = _flat_layer(child)
            if replacement is not None:
                setattr(parent, name, replacement)
    return flat


def _flat_layer(layer: Any) -> nn.Module | None:
    from torch import nn

    if isinstance(layer, nn.Conv3d):
        _check_one_frame(layer, (layer.kernel_size, layer.stride, layer.dilation), layer.padding)
        sizes = {name: _spatial(getattr(layer, name)) for name in ("kernel_size", "stride", "padding", "dilation")}
        flat = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            **sizes,
            groups=layer.groups,
            bias=layer.bias is not None,
            device="meta",
        )
        flat.weight = nn.Parameter(layer.weight.detach()[:, :, 0])
        flat.bias = layer.bias
        return flat
    if isinstance(layer, nn.BatchNorm3d):
        norm = nn.BatchNorm2d(layer.num_features, layer.eps)
        norm.load_state_dict(layer.state_dict())
        return norm.eval()
    if isinstance(layer, nn.MaxPool3d):
        _check_one_frame(layer, (layer.kernel_size, layer.stride, layer.dilation), layer.padding)
        return nn.MaxPool2d(*(_spatial(size) for size in (layer.kernel_size, layer.stride, layer.padding)))
    return None


def _check_one_frame(layer: Any, spans: tuple[Any, ...], padding: Any) -> None:
    if any(_in_time(span) != 1 for span in spans) or _in_time(padding) != 0:
        raise DataError(
            f"{layer}: stem, res2 and res3 of the Slow network must look at one frame at a time, "
            "expected a kernel of 1 in time",
            fix="use slow_r50 or a checkpoint of its architecture for --slow",
        )


def _in_time(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


def _spatial(size: Any) -> Any:
    return size if isinstance(size, int) else tuple(size[1:])
