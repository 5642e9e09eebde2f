"""Checkpoint files, read without running code in them and taken only when every tensor fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".pth", ".pyth", ".bin")
BATCH_COUNT = ".num_batches_tracked"  # ending of the one kind of tensor that no output depends on
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder as the hub has it
_NAMED = 3  # keys that an error names of each kind


def load_checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a ``.safetensors`` file, or of a PyTorch file read with ``weights_only=True``.

    A PyTorch file may hold them under ``model_state``, as PyTorchVideo's do. Raises DataError when
    the file is of another kind, is damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix in PICKLED:
            return _read_pickled(path)
    except ImportError as error:
        raise MissingExtra(error.name or "torch", extra="export") from error
    raise DataError(
        f"{path} is not a checkpoint that can be read safely: expected .safetensors, or one of {', '.join(PICKLED)}",
        fix="save its state dict with safetensors.torch.save_file, and give that file",
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            # It warns of pickles that another library wrote; what cannot be read is an error below.
            warnings.simplefilter("ignore", UserWarning)
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as PyTorch weights (weights_only): {str(error).splitlines()[0]}",
            fix="convert it to safetensors where it was made, and give that file",
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model_state"), dict):
        content = content["model_state"]
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} holds {type(content).__name__}, expected a state dict of tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise DataError(f"{path}: entry {name!r} is {type(value).__name__}, expected a tensor by name")
    return content


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, file: Path, what: str) -> None:
    """Raise DataError unless ``found`` has exactly the names, shapes and kinds of ``expected``.

    ``what``: the architecture that the file should hold, for the message.
    """
    problems = []
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        problems.append(f"{len(missing)} missing: {_named(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_named(unexpected)}")
    misshapen = [
        f"'{name}' is {list(found[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if misshapen:
        problems.append(f"{len(misshapen)} of wrong shape: {'; '.join(misshapen[:_NAMED])}")
    mistyped = [
        f"'{name}' is {str(found[name].dtype).removeprefix('torch.')}"
        for name, tensor in expected.items()
        if name in found and found[name].is_floating_point() != tensor.is_floating_point()
    ]
    if mistyped:
        problems.append(f"{len(mistyped)} of wrong kind: {'; '.join(mistyped[:_NAMED])}")
    if problems:
        raise DataError(
            f"{file} is not a checkpoint of {what} ({len(expected)} tensors): {'. '.join(problems)}",
            fix="give the checkpoint as it was published, for exactly this architecture",
            code="wrong_checkpoint",
        )


def find_weights(folder: Path, to_bring: str) -> Path:
    """The weights in a folder as the hub has it; raises DataError whose fix names the files ``to_bring``."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder} holds no weights: expected {' or '.join(WEIGHT_FILES)}",
        fix=f"put {to_bring} of the model into {folder}",
    )


def _named(keys: list[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(f"'{key}'" for key in keys[:_NAMED]) + more
