"""Checkpoints of the baselines, written after every epoch or round as safetensors files that appear whole.

A file holds the network, the optimiser's moments and, as JSON in the header, the curves. Ctrl-C loses at most
the current epoch. A resumed run ends in the same model, bit for bit on the CPU with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError
from ...base.files import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOMENTS = "optimiser/"  # prefix of the optimiser's tensors


def run_key(**inputs: Any) -> str:
    """Name of a run's checkpoint folder: 16 hexadecimal digits that depend on all ``inputs`` of the training."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``record`` to ``path``, whole or not at all. Raises StorageError."""
    from safetensors.torch import save

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(flat, {"flamest": json.dumps(dict(record))}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Content of ``save_checkpoint``'s file; None when it does not exist. Raises DataError when it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["flamest"])
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the checkpoint {path} cannot be read: {error}", fix=f"remove it to repeat that phase: rm {path}"
        ) from error


def pack_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments by name, ``optimiser/PARAMETER/MOMENT``."""
    import torch

    state = optimiser.state_dict()["state"]
    return {
        f"{MOMENTS}{number}/{name}": value
        for number, moments in state.items()
        for name, value in moments.items()
        if isinstance(value, torch.Tensor)
    }


def unpack_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the moments of ``pack_optimiser``; other entries are ignored."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(MOMENTS):
            number, name = key.removeprefix(MOMENTS).split("/")
            state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
