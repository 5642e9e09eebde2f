"""Checkpoint files, read without running code in them and taken only when every tensor fits."""

from __future__ import annotations

import hashlib
import re
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...base.errors import DataError, MissingExtra, StorageError
from ...base.files import HASH_CHUNK, open_regular, printable_path
from .file_kind import not_weights

if TYPE_CHECKING:
    from torch import Tensor

MAX_FILE = 16 << 30  # bytes; the largest published one has 1
PICKLED = (".pth", ".pyth", ".bin")
BATCH_COUNT = ".num_batches_tracked"  # ending of the one kind of tensor that no output depends on
WEIGHT_FILES: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")  # of a folder as the hub has it
# PyTorch's words for what it refuses.
_HELD = re.compile(r"GLOBAL ([^\s\d]\S*) was not an allowed")
_DAMAGED = re.compile(r"unexpected EOF|Unsupported operand|central directory|PytorchStreamReader|legacy \.tar|corrupt")
_NAMED = 3  # keys that an error names of each kind


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a weights file by name, and the SHA-256 of the file that they were read from."""

    tensors: dict[str, Tensor]
    sha256: str


def load_checkpoint(path: Path, *, sha256: str = "") -> Checkpoint:
    """Read all tensors of a ``.safetensors`` file, or of a PyTorch file read with ``weights_only=True``.

    The file is opened once: the bytes that are hashed are those that are parsed afterwards. ``sha256``: the hash that
    the file must have; with another it is not parsed. A PyTorch file may hold its tensors under ``model_state``, as
    PyTorchVideo's do. Raises DataError when the file is of another kind, is damaged, or holds anything but tensors,
    ``other_weights`` for another hash; StorageError.
    """
    if path.suffix != ".safetensors" and path.suffix not in PICKLED:
        raise DataError(
            f"{path} is not a checkpoint that can be read safely: expected .safetensors, or one of "
            f"{', '.join(PICKLED)}",
            fix="save its state dict with safetensors.torch.save_file, and give that file",
        )
    with open_regular(path, largest=MAX_FILE) as file:
        digest = hashlib.sha256()
        try:
            while chunk := file.read(HASH_CHUNK):
                digest.update(chunk)
            file.seek(0)
        except OSError as error:
            raise StorageError(
                f"cannot read {printable_path(path)}: {error.strerror}",
                fix="check the path, and that this user may read it",
            ) from error
        found = digest.hexdigest()
        if sha256 and found != sha256:
            raise DataError(
                f"{printable_path(path)} has the SHA-256 {found}, expected {sha256}: it is another file, or damaged",
                fix="remove it and fetch it again; if it is meant, give it as a local file with its own hash",
                code="other_weights",
            )
        if what := not_weights(file, file.seek(0, 2)):
            raise DataError(
                f"{printable_path(path)} {what}",
                fix=f"remove it (rm {shlex.quote(str(path))}) and fetch it again",
                code="not_weights",
            )
        try:
            tensors = _read_safetensors(path, file) if path.suffix == ".safetensors" else _read_pickled(path, file)
        except ImportError as error:
            raise MissingExtra(error.name or "torch", extra="export") from error
    return Checkpoint(tensors, found)


def load_checkpoint_tensors(path: Path, *, sha256: str = "") -> dict[str, Tensor]:
    """Return the tensors of ``load_checkpoint``; raises as it does."""
    return load_checkpoint(path, sha256=sha256).tensors


def _read_safetensors(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(f"/proc/self/fd/{file.fileno()}"))  # the library opens by name only
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise DataError(
            f"{path} cannot be read as safetensors: {error}", fix="download or save the file again"
        ) from error


def _read_pickled(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    import warnings

    import torch

    _check_unpacked_size(path, file)
    try:
        with warnings.catch_warnings():
            # It warns of pickles that another library wrote; what cannot be read is an error below.
            warnings.simplefilter("ignore", UserWarning)
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler raises whatever the bytes lead it to
        raise DataError(
            f"{path} cannot be read as PyTorch weights (weights_only): {_refusal(error)}",
            fix="fetch it again; where it holds more than tensors and you trust it, convert it to safetensors "
            "(docs/guides/export.md, Files that are refused) and give that file",
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model_state"), dict):
        content = content["model_state"]
    if not isinstance(content, dict) or not content:
        raise DataError(
            f"{path} holds {type(content).__name__}, expected a state dict of tensors",
            fix="save the network's state_dict() with torch.save, and give that file",
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise DataError(
                f"{path}: entry {name!r} is {type(value).__name__}, expected a tensor by name",
                fix="save the network's state_dict() with torch.save, and give that file",
            )
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise DataError(
                f"{path}: entry {name!r} is no plain tensor",
                fix="save the network's state_dict() with torch.save, and give that file",
                code="wrong_checkpoint",
            )
    return content


def _refusal(error: Exception) -> str:
    """Return why PyTorch did not read a file: the object in it, where there is one that is no tensor."""
    text = str(error)
    if held := _HELD.search(text):
        return f"besides tensors it holds {held[1]}, and reading that could run code"
    if isinstance(error, EOFError) or _DAMAGED.search(text):
        return "it is damaged, cut short, or not a file that torch.save wrote"
    return (text.splitlines() or [""])[0] or type(error).__name__


def _check_unpacked_size(path: Path, file: BinaryIO) -> None:
    """Refuse a ZIP file, which newer PyTorch writes, with compressed entries: PyTorch stores them as they are."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return
    try:
        with zipfile.ZipFile(file) as archive:
            packed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, MemoryError) as error:
        raise DataError(
            f"{path} cannot be read as PyTorch weights: {error}", fix="download or save the file again"
        ) from error
    file.seek(0)
    if packed:
        raise DataError(
            f"{path} holds compressed entries, expected what torch.save writes",
            fix="convert it to safetensors where it was made, and give that file",
        )


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
