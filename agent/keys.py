"""The silo's own key, made where it stays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..base.errors import StorageError
from ..base.files import write_atomic, write_new
from ..fedproto.certificates import make_silo_request


@dataclass(frozen=True)
class KeyAndRequest:
    """What ``make_request`` wrote."""

    key_path: Path  # never leaves the silo; mode 0600
    csr_path: Path  # goes to the coordinator's operator


def make_request(name: str, folder: Path) -> KeyAndRequest:
    """Write ``NAME.key`` and ``NAME.csr`` into ``folder`` (made when absent): P-256, PEM.

    An existing key is never overwritten: the coordinator may have signed for it. Raises UsageError for
    a name that no silo can have, StorageError.
    """
    folder = Path(folder)
    made = KeyAndRequest(folder / f"{name}.key", folder / f"{name}.csr")
    key, request = make_silo_request(name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(made.key_path, key, mode=0o600)
    except FileExistsError as error:
        raise StorageError(
            f"{made.key_path} exists already and is not overwritten",
            fix="use it, or choose another folder with --out",
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write {made.key_path}: {error.strerror}") from error
    write_atomic(made.csr_path, request)
    return made
