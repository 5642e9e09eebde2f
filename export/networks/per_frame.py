"""Video networks rewritten as image networks: 2-d convolutions over a batch of frames, batch norms folded.

Runtimes are tuned for images. A layer that reads three frames at one position, kernel (3, 1, 1), becomes one
matmul for all three and a sum of its parts, shifted in time.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError

if TYPE_CHECKING:
    from torch import nn


def fold_norms(module: nn.Module) -> nn.Module:
    """Change ``module`` (in evaluation mode) so that each batch norm that directly follows a convolution is gone.

    A norm follows the convolution registered just before it in the same parent: so it is in
    PyTorchVideo's blocks and torchvision's, and parity with PyTorch proves it for each export.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    convolutions, norms = (nn.Conv2d, nn.Conv3d), (nn.BatchNorm2d, nn.BatchNorm3d)
    for parent in list(module.modules()):
        previous: tuple[str, Any] | None = None
        for name, child in list(parent.named_children()):
            if previous is not None and isinstance(child, norms):
                fused: Any = fuse_conv_bn_eval(previous[1], child)
                setattr(parent, previous[0], fused)
                setattr(parent, name, nn.Identity())
            previous = (name, child) if isinstance(child, convolutions) else None
    return module


def frame_layers(module: nn.Module, frames: int) -> nn.Module | None:
    """A copy of ``module``, [B, C, frames, H, W] -> [B, C', frames, H', W'], that computes the same on
    [B · frames, C, H, W] -> [B · frames, C', H', W'], batch norms folded into convolutions.

    None when a layer mixes frames in another way than a kernel (3, 1, 1).
    """

    folded = fold_norms(copy.deepcopy(module).eval())
    layers = [layer for layer in folded.modules() if not list(layer.children())]
    if not all(_sees_one_frame(layer) or _sees_three_frames(layer) for layer in layers):
        return None
    return _flatten(folded, lambda layer: _shifted_sum(layer, frames) if _sees_three_frames(layer) else _flat(layer))


def early_layers(module: nn.Module) -> nn.Module:
    """A copy of ``module`` for [N, C, H, W]. Raises DataError when a layer sees more than one frame."""
    from torch import nn

    def checked(layer: Any) -> nn.Module | None:
        if isinstance(layer, nn.Conv3d | nn.MaxPool3d) and not _sees_one_frame(layer):
            raise DataError(
                f"{layer}: stem, res2 and res3 of the Slow network must read one frame at a time, "
                "expected a kernel of 1 in time",
                fix="use slow_r50 or a checkpoint of its architecture for --slow",
            )
        return _flat(layer)

    return _flatten(copy.deepcopy(module), checked)


def _sees_one_frame(layer: Any) -> bool:
    """True for a layer that reads one frame alone, in a form that ``_flat`` supports."""
    from torch import nn

    if isinstance(layer, nn.Conv3d):
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and _in_time(layer.dilation) == 1 and _one_at_a_time(layer)
    if isinstance(layer, nn.MaxPool3d):
        plain = layer.dilation in (1, (1, 1, 1)) and not layer.ceil_mode and not layer.return_indices
        return plain and _one_at_a_time(layer)
    return isinstance(layer, nn.BatchNorm3d | nn.ReLU | nn.Identity | nn.Dropout)


def _sees_three_frames(layer: Any) -> bool:
    from torch import nn

    return (
        isinstance(layer, nn.Conv3d)
        and (layer.kernel_size, layer.stride, layer.padding) == ((3, 1, 1), (1, 1, 1), (1, 0, 0))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1, 1), 1, "zeros")
    )


def _flatten(module: nn.Module, flat_layer: Any) -> nn.Module:
    """Change ``module``: every layer is replaced by ``flat_layer`` of it, unless that is None."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            replacement = flat_layer(child)
            if replacement is not None:
                setattr(parent, name, replacement)
    return module


def _flat(layer: Any) -> nn.Module | None:
    """Return ``layer`` in two dimensions; None for a layer without extent in time."""
    from torch import nn

    if isinstance(layer, nn.Conv3d):
        sizes = {name: _spatial(getattr(layer, name)) for name in ("kernel_size", "stride", "padding", "dilation")}
        channels = (layer.in_channels, layer.out_channels)
        flat = nn.Conv2d(*channels, **sizes, groups=layer.groups, bias=layer.bias is not None, device="meta")
        flat.weight = nn.Parameter(layer.weight.detach()[:, :, 0])
        flat.bias = layer.bias
        return flat
    if isinstance(layer, nn.BatchNorm3d):
        norm = nn.BatchNorm2d(layer.num_features, layer.eps)
        norm.load_state_dict(layer.state_dict())
        return norm.eval()
    if isinstance(layer, nn.MaxPool3d):
        return nn.MaxPool2d(*(_spatial(size) for size in (layer.kernel_size, layer.stride, layer.padding)))
    return None


def _shifted_sum(layer: Any, frames: int) -> nn.Module:
    """out[t] = W0 x[t - 1] + W1 x[t] + W2 x[t + 1] + bias: one 1 x 1 convolution to all three, then shifts and sums."""
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import pad

    channels = layer.out_channels

    class ShiftedSum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.products = nn.Conv2d(layer.in_channels, 3 * channels, 1, device="meta")
            weight = layer.weight.detach()[..., 0, 0]  # [out, in, 3]
            self.products.weight = nn.Parameter(weight.permute(2, 0, 1).reshape(3 * channels, -1, 1, 1).contiguous())
            bias = torch.zeros(3, channels)
            if layer.bias is not None:
                bias[1] = layer.bias.detach()
            self.products.bias = nn.Parameter(bias.reshape(-1))

        def forward(self, x: Tensor) -> Tensor:
            parts = self.products(x)
            height, width = parts.shape[-2:]
            before, now, after = parts.reshape(-1, frames, 3 * channels, height, width).split(channels, dim=2)
            before = pad(before[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
            after = pad(after[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
            summed: Tensor = now + before + after
            return summed.reshape(-1, channels, height, width)

    return ShiftedSum()


def _one_at_a_time(layer: Any) -> bool:
    return _in_time(layer.kernel_size) == _in_time(layer.stride) == 1 and _in_time(layer.padding) == 0


def _in_time(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


def _spatial(size: Any) -> Any:
    return size if isinstance(size, int) else tuple(size[1:])
