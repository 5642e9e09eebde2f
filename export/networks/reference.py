"""The libraries of the reference networks: building, running and counting such a network.

The references are Hugging Face's BLIP, CLIP and VideoMAE, PyTorchVideo's Slow and I3D, and torchvision's
ResNet-3D. Each has a file of its own next to this one.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...base.errors import MissingExtra
from ...runtime.bundle.manifest import FramePreprocessing, Network

if TYPE_CHECKING:
    from torch import Tensor, nn

N = TypeVar("N", bound="nn.Module")
Frames = npt.NDArray[np.float32]  # [B, 3, K, S, S]
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "httpx", "huggingface_hub", "transformers")


@dataclass(frozen=True)
class VideoForm:
    """Sizes of a network's input and output."""

    frames: int  # per clip
    crop: int  # pixels, of a frame
    width: int  # of the embedding
    keyframe_size: int = 0  # pixels, of the frames among which keyframes are picked; Slow's alone


@dataclass(frozen=True, eq=False)
class VideoNetwork:
    """A spatio-temporal network: builders, the module that is exported, and the reference that proves it."""

    name: Network
    full: Callable[[], tuple[nn.Module, VideoForm]]  # of the published size; weights not set
    tiny: Callable[[], tuple[nn.Module, VideoForm]]  # few layers, for tests and the demo; weights not set
    module: Callable[[nn.Module, int], nn.Module]  # exported, for [B, K, 3, S, S]; from the network and K
    reference: Callable[[nn.Module, Frames], npt.NDArray[np.float32]]  # the embedding by the library's own forward
    preprocessing: Callable[[int], FramePreprocessing]  # from the crop's pixels
    pooling: str  # recorded in the manifest, for people


def inputs_of(layer: nn.Module, net: nn.Module, frames: npt.NDArray[np.float32]) -> list[Tensor]:
    """Inputs of ``layer`` while ``net`` runs on ``frames``, one tensor per call."""
    import torch

    seen: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            net(torch.from_numpy(frames))
    finally:
        hook.remove()
    return seen


def unset(net: N) -> N:
    """Give ``net``, built without memory, memory for its weights; only norms' batch counts are set, to zero."""
    net = net.to_empty(device="cpu").eval()
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    return net


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(as Table 1 counts, each stored value once).

    The paper's table counts BLIP's word embedding and its tied output projection as two matrices.
    """
    stored = sum(parameter.numel() for parameter in model.parameters())
    word_embedding = getattr(model, "get_input_embeddings", None)
    decoder = getattr(model, "text_decoder", None)
    if word_embedding is None or decoder is None:
        return stored, stored
    projection = decoder.get_output_embeddings().weight
    tied = projection is word_embedding().weight
    return stored + (projection.numel() if tied else 0), stored


def import_pytorchvideo(module: str) -> Any:
    """Import ``pytorchvideo.<module>``; its helper fvcore still compiles with the deprecated torch.jit.script."""
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return importlib.import_module(f"pytorchvideo.{module}")
        except ImportError as error:
            raise MissingExtra("pytorchvideo", extra="export") from error


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' notes; their errors still show."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Limit PyTorch to ``threads`` cores; None leaves its own default."""
    if threads is None:
        yield
        return
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="export") from error
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
