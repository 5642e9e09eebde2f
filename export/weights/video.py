"""Slow, I3D and ResNet-3D from their publishers' model zoos, or from a checkpoint file of that architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra, UnreachableError
from .checkpoints import BATCH_COUNT, check_tensors, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ZooEntry:
    """One published checkpoint."""

    name: str  # "slow_r50"
    file: str  # "SLOW_8x8_R50.pyth"
    zoo: str  # "PyTorchVideo's model zoo"
    option: str  # of the command line that takes the file: "--slow"


def load_video(path: Path, net: nn.Module, *, what: str) -> nn.Module:
    """``net`` with the weights of ``path``; raises DataError naming what does not fit ``what``."""
    return _fill(net, read_tensors(path), file=path, what=what)


def download_video(entry: ZooEntry, url: str, net: nn.Module) -> nn.Module:
    """``net`` with its published weights, from PyTorch's download cache or the model zoo.

    Raises UnreachableError, naming the file to bring, when it is in neither.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="export") from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / entry.file
    try:
        content: Any = torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True, progress=False)
    except OSError as error:  # no network, no name, an HTTP status: all are URLError
        raise UnreachableError(
            f"the weights {entry.file} of {entry.name} are not on this machine and could not be downloaded: {error}",
            fix=f"bring {entry.file} of {entry.zoo} ({entry.name}, Kinetics) to this machine, then type: "
            f"flamest-export --backend onnx {entry.option} PATH/{entry.file} --out DIR",
        ) from error
    return _fill(net, content.get("model_state", content), file=cached, what=entry.name)


def _fill(net: nn.Module, tensors: dict[str, Tensor], *, file: Path, what: str) -> nn.Module:
    # How many batches a norm has seen matters in training only; older checkpoints leave it out.
    counts = {name: value for name, value in net.state_dict().items() if name.endswith(BATCH_COUNT)}
    tensors = {**counts, **tensors}
    check_tensors(tensors, net.state_dict(), file=file, what=what)
    for name in (name for name in tensors if name.endswith("running_var")):
        if not bool((tensors[name] >= 0).all()):
            raise DataError(f"{file}: '{name}' holds a negative variance", code="wrong_checkpoint")
    net.load_state_dict(tensors, strict=True)
    return net
