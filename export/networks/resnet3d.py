"""ResNet-3D: torchvision's ``r3d_18`` (https://arxiv.org/abs/1711.11248), three frames of 112 px."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.errors import MissingExtra
from .preprocessing import resnet3d_frames
from .reference import VideoForm, VideoNetwork, inputs_of, unset

if TYPE_CHECKING:
    from torch import Tensor, nn

# Three frames as in the paper's Table 1; the published weights were trained on 16.
R3D_18_FORM = VideoForm(frames=3, crop=112, width=512)
R3D_TINY_FORM = VideoForm(frames=3, crop=56, width=512)
TRUNK = ("stem", "layer1", "layer2", "layer3", "layer4")  # all before the pooling


def build_r3d_18() -> nn.Module:
    """``r3d_18`` with its 400 Kinetics classes: 33,371,472 parameters, not set."""
    return _build((2, 2, 2, 2))


def build_r3d_tiny() -> nn.Module:
    """The same stem, stages and head with one block per stage."""
    return _build((1, 1, 1, 1))


def published_url() -> str:
    """URL of the published Kinetics weights, as torchvision states it."""
    return str(_torchvision().R3D_18_Weights.KINETICS400_V1.url)


def resnet3d_module(net: nn.Module) -> nn.Module:
    """frames float32 [B, K, 3, S, S] -> embedding float32 [B, width]: the mean that enters the last dense layer."""
    from torch import nn

    class ResNet3D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(*(getattr(net, name) for name in TRUNK))

        def forward(self, frames: Tensor) -> Tensor:
            return self.trunk(frames.transpose(1, 2)).mean(dim=(2, 3, 4))  # type: ignore[no-any-return]

    return ResNet3D().eval()


def before_fc(net: nn.Module, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Input of the last dense layer in torchvision's own forward: the reference."""
    whole: Any = net
    (seen,) = inputs_of(whole.fc, net, frames)
    return seen.numpy()


def _build(blocks: tuple[int, ...]) -> nn.Module:
    import torch

    resnet = _torchvision().resnet
    with torch.device("meta"):
        net: nn.Module = resnet.VideoResNet(
            resnet.BasicBlock, [resnet.Conv3DSimple] * 4, list(blocks), resnet.BasicStem
        )
    return unset(net)


def _torchvision() -> Any:
    try:
        import torchvision.models.video as video
    except ImportError as error:
        raise MissingExtra(error.name or "torchvision", extra="export") from error
    return video


RESNET3D = VideoNetwork(
    name="resnet3d",
    full=lambda: (build_r3d_18(), R3D_18_FORM),
    tiny=lambda: (build_r3d_tiny(), R3D_TINY_FORM),
    module=lambda net, _frames: resnet3d_module(net),
    reference=before_fc,
    preprocessing=resnet3d_frames,
    pooling="mean over all positions",
)
