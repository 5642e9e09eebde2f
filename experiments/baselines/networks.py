"""KD's teacher, assistant and student: residual networks over a clip's frames, torchvision's classes.

Every network takes float32 [B, T, 3, S, S], normalised, and returns logits float32 [B, K]. Table 1's student of
11,689,512 parameters is torchvision's two-dimensional ResNet-18 with 1000 classes: it sees single frames, and
a clip's logits are the mean over its frames. The three-dimensional ResNet-18 (33,371,472 parameters with 400
classes) sees motion. Both can be trained here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ...base.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

Role = Literal["teacher", "assistant", "student"]
Scale = Literal["small", "full"]
Dimensions = Literal["2d", "3d"]
BLOCKS: dict[tuple[Role, Scale], tuple[int, int, int, int]] = {
    ("teacher", "full"): (3, 4, 6, 3),  # bottleneck blocks: ResNet-50
    ("assistant", "full"): (3, 4, 6, 3),  # basic blocks: ResNet-34
    ("student", "full"): (2, 2, 2, 2),  # basic blocks: ResNet-18
    ("teacher", "small"): (1, 1, 2, 1),
    ("assistant", "small"): (1, 2, 2, 1),
    ("student", "small"): (1, 1, 1, 1),
}
SMALL_STEM = 16  # channels, against 64 in the full networks; the stages are narrower by the same factor
MEAN, STD = 0.45, 0.225  # pytorchvideo's, of values between 0 and 1


def build_network(role: Role, scale: Scale, dimensions: Dimensions, classes: int, *, seed: int) -> nn.Module:
    """One of KD's three networks with torchvision's initial weights, drawn from ``seed``.

    The teacher is always three-dimensional: its knowledge of motion is what is distilled. Raises
    MissingExtra without torchvision.
    """
    try:
        import torch
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingExtra(error.name or "torchvision", extra="export") from error

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if role == "teacher" or dimensions == "3d":
            return _volume(_build_3d(BLOCKS[role, scale], scale, classes, bottleneck=role == "teacher"))
        return _per_frame(_build_2d(BLOCKS[role, scale], scale, classes))


def count_parameters(net: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def as_input(frames: npt.NDArray[np.uint8], mean: object, std: object, device: torch.device) -> torch.Tensor:
    """uint8 [B, T, S, S, 3] -> float32 [B, T, 3, S, S], (value / 255 - mean) / std per channel."""
    import torch

    pixels = torch.from_numpy(frames).to(device).permute(0, 1, 4, 2, 3).float().div_(255)
    shape = (1, 1, -1, 1, 1)
    centre = torch.as_tensor(mean, dtype=torch.float32, device=device).reshape(shape)
    spread = torch.as_tensor(std, dtype=torch.float32, device=device).reshape(shape)
    return pixels.sub_(centre).div_(spread).contiguous()


def replace_classifier(net: nn.Module, classes: int, *, seed: int) -> None:
    """Replace the last layer of ``net`` by a new one for ``classes``, for fine-tuning on other labels."""
    import torch

    inner: Any = net.net
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inner.fc = torch.nn.Linear(inner.fc.in_features, classes)


def _per_frame(net: nn.Module) -> nn.Module:
    from torch import Tensor, nn

    class PerFrame(nn.Module):
        """A network over single frames; the logits of a clip are the mean over its frames."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, clips: Tensor) -> Tensor:
            logits: Tensor = self.net(clips.flatten(0, 1))
            return logits.view(clips.shape[0], clips.shape[1], -1).mean(1)

    return PerFrame()


def _volume(net: nn.Module) -> nn.Module:
    from torch import Tensor, nn

    class Volume(nn.Module):
        """A network over space and time."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, clips: Tensor) -> Tensor:
            logits: Tensor = self.net(clips.transpose(1, 2).contiguous())
            return logits

    return Volume()


def _build_2d(blocks: tuple[int, ...], scale: Scale, classes: int) -> nn.Module:
    from torch import nn
    from torchvision.models.resnet import BasicBlock, ResNet

    if scale == "full":
        return ResNet(BasicBlock, list(blocks), num_classes=classes)  # type: ignore[no-any-return]

    class SmallResNet(ResNet):  # type: ignore[misc]
        """ResNet with fewer channels: the library fixes them in the calls of this method."""

        def _make_layer(self, block: Any, planes: int, *rest: Any, **more: Any) -> nn.Sequential:
            self.inplanes: int = SMALL_STEM if planes == 64 else self.inplanes
            return super()._make_layer(block, planes * SMALL_STEM // 64, *rest, **more)  # type: ignore[no-any-return]

    net: Any = SmallResNet(BasicBlock, list(blocks))
    net.conv1 = nn.Conv2d(3, SMALL_STEM, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.bn1 = nn.BatchNorm2d(SMALL_STEM)
    net.fc = nn.Linear(8 * SMALL_STEM, classes)
    return net  # type: ignore[no-any-return]


def _build_3d(blocks: tuple[int, ...], scale: Scale, classes: int, *, bottleneck: bool) -> nn.Module:
    from torch import nn
    from torchvision.models.video.resnet import BasicBlock, BasicStem, Bottleneck, Conv3DSimple, VideoResNet

    block = Bottleneck if bottleneck else BasicBlock
    makers = [Conv3DSimple] * 4
    if scale == "full":
        return VideoResNet(block, makers, list(blocks), BasicStem, num_classes=classes)  # type: ignore[no-any-return]

    class SmallVideoResNet(VideoResNet):  # type: ignore[misc]
        """VideoResNet with fewer channels, in the same way."""

        def _make_layer(self, block: Any, conv: Any, planes: int, *rest: Any, **more: Any) -> nn.Sequential:
            self.inplanes: int = SMALL_STEM if planes == 64 else self.inplanes
            return super()._make_layer(block, conv, planes * SMALL_STEM // 64, *rest, **more)  # type: ignore[no-any-return]

    def stem() -> nn.Sequential:
        layer = nn.Conv3d(3, SMALL_STEM, kernel_size=(3, 7, 7), stride=(1, 4, 4), padding=(1, 3, 3), bias=False)
        return nn.Sequential(layer, nn.BatchNorm3d(SMALL_STEM), nn.ReLU(inplace=True))

    net: Any = SmallVideoResNet(block, makers, list(blocks), stem)
    net.fc = nn.Linear(8 * SMALL_STEM * block.expansion, classes)
    nn.init.normal_(net.fc.weight, 0, 0.01)
    nn.init.zeros_(net.fc.bias)
    return net  # type: ignore[no-any-return]
