"""The Slow network from PyTorchVideo's model zoo, or from a checkpoint file of that architecture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import DataError, MissingExtra, UnreachableError
from .architectures import build_slow_r50, zoo_url
from .checkpoints import BATCH_COUNT, check_tensors, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

ZOO_FILE = "SLOW_8x8_R50.pyth"


def load_slow(path: Path) -> nn.Module:
    """``slow_r50`` with the weights of ``path``; raises DataError naming what does not fit."""
    return _fill(read_tensors(path), path)


def download_slow_r50() -> nn.Module:
    """``slow_r50`` with its published Kinetics weights, from PyTorch's download cache or the model zoo.

    Raises UnreachableError, naming the file to bring, when it is in neither.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="export") from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / ZOO_FILE
    try:
        content: Any = torch.hub.load_state_dict_from_url(
            zoo_url("slow_r50"), map_location="cpu", weights_only=True, progress=False
        )
    except OSError as error:  # no network, no name, an HTTP status: all are URLError
        raise UnreachableError(
            f"the Slow weights {ZOO_FILE} are not on this machine and could not be downloaded: {error}",
            fix=f"bring {ZOO_FILE} of PyTorchVideo's model zoo (slow_r50, Kinetics) to this machine, then type: "
            f"flamest-export --backend onnx --slow PATH/{ZOO_FILE} --out DIR",
        ) from error
    return _fill(content["model_state"], cached)


def _fill(tensors: dict[str, Tensor], file: Path) -> nn.Module:
    net = build_slow_r50()
    # How many batches a norm has seen matters in training only; older checkpoints leave it out.
    counts = {name: value for name, value in net.state_dict().items() if name.endswith(BATCH_COUNT)}
    tensors = {**counts, **tensors}
    check_tensors(tensors, net.state_dict(), file=file, what="SLOW_8x8_R50 (slow_r50, 400 classes)")
    variances = [name for name in tensors if name.endswith("running_var")]
    for name in variances:
        if not bool((tensors[name] >= 0).all()):
            raise DataError(f"{file}: '{name}' holds a negative variance", code="wrong_checkpoint")
    net.load_state_dict(tensors, strict=True)
    return net
