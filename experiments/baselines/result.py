"""Result of a baseline's run as a file that the tables read, and the machine that it was measured on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...base.errors import MissingExtra, SettingsError
from ...base.files import write_atomic

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
SET_ASIDE = "set aside from the training clips"  # in KD's result: origin of its centre's clips


@dataclass(frozen=True)
class BaselineResult:
    """Figures of a run. Accuracies are shares between 0 and 1, on clips held out by whole groups."""

    name: str  # KD or ActionCLIP
    dataset: str
    scale: str  # small or full
    best: float  # over ``curve``
    last: float
    seconds_train: float  # of training in all phases, without decoding, evaluation and interrupted epochs
    seconds_test: float  # one pass over the decoded test clips
    trainable_parameters: int  # of the network that is trained last: KD's student, ActionCLIP's whole CLIP
    curve: tuple[float, ...]  # on the test clips after every round (KD) or epoch (ActionCLIP)
    train_curve: tuple[float, ...]  # on the training clips while training, per round or epoch
    settings: Mapping[str, Any]
    seed: int
    details: Mapping[str, Any]  # further figures, clips and machine


def write_result(result: BaselineResult, folder: Path) -> Path:
    """Write ``folder``/kd.json or actionclip.json, whole or not at all. Raises StorageError."""
    path = folder / f"{result.name.lower()}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(as_record(result), indent=2) + "\n").encode())
    return path


def as_record(result: BaselineResult) -> dict[str, Any]:
    """The result as plain values for JSON."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(result), default=str))
    return record


def settings_record(settings: Any) -> dict[str, Any]:
    """A run's settings for its result, where the key of the clips' shape is ``film``."""
    record = dataclasses.asdict(settings)
    return {"film" if key == "shape" else key: value for key, value in record.items()}


def best_and_last(curve: Sequence[float]) -> tuple[float, float]:
    """The highest and the last accuracy of a curve."""
    return max(curve), curve[-1]


@contextlib.contextmanager
def torch_on(device: Device, threads: int) -> Iterator[torch.device]:
    """Yield the device to compute on; PyTorch uses ``threads`` threads until the end of the block.

    Raises MissingExtra without PyTorch, SettingsError when CUDA is requested but not available.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="export") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("PyTorch finds no CUDA device", fix="leave out --device, or give --device cpu")
    chosen = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield chosen
    finally:
        torch.set_num_threads(before)


def training_machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Hardware, threads and load that a result's seconds were measured with."""
    import os
    import platform

    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "device": f"{device.type}: {name}",
        "threads": threads,
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }
