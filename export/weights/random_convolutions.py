"""Seeded weights of Slow, I3D and ResNet-3D for ``random:*`` that mean something numerically.

The libraries leave the last batch norm of each block at zero. Here batch norms have scales, and the
statistics of seeded clips; embeddings are of order 1 and differ between clips and motions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..networks.reference import VideoForm
from ..networks.resnet3d import TRUNK
from ..precision.calibration import calibration_clips
from .random_transformers import assign, draw, rounded

if TYPE_CHECKING:
    from torch import nn

# Of the norms that close a block. A branch adds little to the sum, as in trained networks: with gain 1 the sums
# amplify rounding (bf16: cosine 0.90, with this one 0.9999), and no precision could be measured.
CLOSING_GAIN = np.float32(0.15)
CLOSING_SHIFT, LAST_SHIFT = -0.5, -0.25  # LAST: of the last stage, whose branches add as much as there is
MEASURED = 128  # pixels; 256 would take four times as long in float64


@dataclass(frozen=True)
class _Names:
    """A library's names of the layers that are treated separately."""

    key: str  # of the draws
    last_stage: str  # its output is the embedding
    closing: str  # the norm before a block's sum


def randomise_slow(net: nn.Module, form: VideoForm, *, seed: int) -> None:
    """Set every weight of ``net`` from ``seed``; batch-norm statistics are those of seeded clips."""
    _randomise(net, _Names("slow", "blocks.4.", ".norm_c."), _blocks(net), form, seed)


def randomise_i3d(net: nn.Module, form: VideoForm, *, seed: int) -> None:
    """Set the weights as ``randomise_slow`` does; ``blocks[2]`` is the pooling in time, and holds no weights."""
    _randomise(net, _Names("i3d", "blocks.5.", ".norm_c."), _blocks(net), form, seed)


def randomise_resnet3d(net: nn.Module, form: VideoForm, *, seed: int) -> None:
    """Set the weights as ``randomise_slow`` does."""
    trunk = {name: getattr(net, name) for name in TRUNK}
    _randomise(net, _Names("resnet3d", "layer4.", ".conv2.1."), trunk, form, seed)


def _blocks(net: nn.Module) -> dict[str, nn.Module]:
    """PyTorchVideo's blocks but for the head, which does not fit a small crop."""
    blocks: Any = net.blocks
    return {f"blocks.{index}": block for index, block in enumerate(blocks[:-1])}


def _randomise(net: nn.Module, names: _Names, trunk: Mapping[str, nn.Module], form: VideoForm, seed: int) -> None:
    from torch import nn

    norms = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm3d)}
    for name, parameter in net.named_parameters():
        drawn = draw(f"{names.key}.{name}", seed, tuple(parameter.shape))
        if name.rpartition(".")[0] in norms:
            assign(parameter, _norm_values(name, names, drawn))
        elif name.endswith("bias"):
            assign(parameter, 0.1 * drawn)
        else:
            assign(parameter, drawn * np.float32(np.sqrt(2 / int(np.prod(drawn.shape[1:])))))
    size = min(form.crop, MEASURED)
    _measure(net, trunk, calibration_clips(seed, clips=4, frames=form.frames, size=size, mean=0.45, std=0.225))


def _norm_values(name: str, names: _Names, drawn: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The last norm of a block shifts down: fewer positions pass the rectifier, and clips differ more."""
    last = name.startswith(names.last_stage)
    closing = names.closing in name
    gain = CLOSING_GAIN if closing and not last else np.float32(1.0)
    shift = (LAST_SHIFT if last else CLOSING_SHIFT) if closing else 0.0
    return gain * ((1 + 0.2 * drawn) if name.endswith("weight") else shift + 0.3 * drawn)


def _measure(net: nn.Module, trunk: Mapping[str, nn.Module], clips: npt.NDArray[np.float64]) -> None:
    """Running mean and variance of every batch norm from one float64 pass over ``clips``."""
    import copy

    import torch
    from torch import nn

    # Statistics of a batch are a mean over 1e3 to 1e6 positions: in float64 their last bits are noise.
    double = {name: copy.deepcopy(part).double().train() for name, part in trunk.items()}
    norms = {
        f"{name}.{inner}": module
        for name, part in double.items()
        for inner, module in part.named_modules()
        if isinstance(module, nn.BatchNorm3d)
    }
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = 1.0
    seen = torch.from_numpy(clips)
    with torch.no_grad():
        for part in double.values():
            seen = part(seen)
    for name, norm in norms.items():
        target: Any = net.get_submodule(name)
        assign(target.running_mean, rounded(norm.running_mean.numpy()))  # type: ignore[union-attr]
        assign(target.running_var, rounded(norm.running_var.numpy()))  # type: ignore[union-attr]
        target.num_batches_tracked.fill_(1)
