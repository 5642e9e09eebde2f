"""Frames that enter a graph as bytes: the normalisation before a network, as a module.

A byte is a quarter of a float on its way to a device, and a host need not touch it. The arithmetic is in float32 and
in the order of the networks' publishers, so that a graph computes what a host's table of 256 values holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.bundle.manifest import FramePreprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn


def bytes_module(module: nn.Module, rule: FramePreprocessing) -> nn.Module:
    """``module`` of float32 [..., 3, S, S] as a module of uint8 [..., S, S, 3], which ``rule`` normalises.

    Cast first: TensorRT takes uint8 at a network's input alone. Channels to the front next: mean and deviation then
    apply to whole planes, which ONNX Runtime's CPU kernels do many times faster than to every third value.
    """
    import torch
    from torch import nn

    def per_channel(values: tuple[float, float, float]) -> nn.Buffer:
        return nn.Buffer(torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1))

    class FromBytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module
            self.mean = per_channel(rule.mean)
            self.std = per_channel(rule.std)

        def forward(self, frames: Tensor) -> Any:
            values = frames.float().movedim(-1, -3)
            return self.network((values / 255 - self.mean) / self.std)

    return FromBytes().eval()


def normalise_bytes(rgb: npt.NDArray[np.uint8], rule: FramePreprocessing) -> npt.NDArray[np.float32]:
    """The same on the host, to the same bits: uint8 [..., S, S, 3] -> float32 [..., 3, S, S]."""
    mean, std = (np.asarray(values, np.float32) for values in (rule.mean, rule.std))
    return np.ascontiguousarray(np.moveaxis((rgb / np.float32(255) - mean) / std, -1, -3))
