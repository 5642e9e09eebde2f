"""This silo's identity: its private key, and the number that distinguishes this agent from a copy of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import DataError, StorageError
from ..base.files import read_regular, write_atomic, write_new
from ..fedproto.certificates import make_silo_request

INSTANCE_FILE = "instance"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # man 4 random
SECRET_BYTES = 16  # bytes
MAX_INSTANCE = 4096  # bytes


def agent_instance(state: Path, boot_id: Path = BOOT_ID) -> str:
    """Return 32 hexadecimal digits that distinguish this agent from another one with the same certificate.

    They follow from a random file in ``state`` (made when there is none) and from the machine's boot identifier, so
    they stay the same when the agent restarts, and differ for a copied certificate and for a copied machine. They
    differ after a reboot too: the agent then waits until the coordinator's lease of the one before is over
    (docs/decisions/021-one-agent-of-an-identity.md). Raises StorageError.
    """
    path = state / INSTANCE_FILE
    try:
        secret = read_regular(path, largest=MAX_INSTANCE) if os.path.lexists(path) else b""
    except DataError as error:  # not a file, or a large one: not ours, and not replaced
        raise StorageError(error.message, fix=f"move {path} away: the agent makes another") from error
    if len(secret) != SECRET_BYTES:
        secret = os.urandom(SECRET_BYTES)
        write_atomic(path, secret, mode=0o600)
    try:
        boot = boot_id.read_bytes()
    except OSError:  # not Linux: the file alone distinguishes copies
        boot = b""
    return hashlib.sha256(secret + boot).hexdigest()[: 2 * SECRET_BYTES]


@dataclass(frozen=True)
class KeyAndRequest:
    """The files that ``make_request`` wrote."""

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
        raise StorageError(
            f"cannot write {made.key_path}: {error.strerror}",
            fix="check free space and permissions of the folder, or choose another --out",
        ) from error
    write_atomic(made.csr_path, request)
    return made
