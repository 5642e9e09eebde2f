"""The libraries under an export, kept quiet, and to the cores that the person allows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ..base.errors import MissingExtra

_TALKERS = ("torch.onnx", "onnxscript", "onnx_ir", "httpx", "huggingface_hub", "transformers")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Errors of the libraries still show, their notes do not."""
    before = {name: logging.getLogger(name).level for name in _TALKERS}
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """PyTorch on ``threads`` cores; None leaves it at all."""
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
