"""Batch norms folded into the convolutions before them: the same numbers with half the operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
