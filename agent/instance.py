"""What tells this agent from another one with the same certificate: 16 bytes, the same over its restarts.

They follow from a random file in the state folder and from the machine's boot identifier: an agent that is started
again is itself, a copied certificate is another, and so is a copied machine. So is this one after a reboot: it then
waits until the coordinator's lease of the one before is over (decision 021).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..base.errors import StorageError
from ..base.files import write_atomic

FILE = "instance"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # man 4 random
SIZE = 16  # bytes


def agent_instance(state: Path, boot_id: Path = BOOT_ID) -> str:
    """32 hexadecimal digits; the file in ``state`` is made when there is none. Raises StorageError."""
    path = state / FILE
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = b""
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if len(secret) != SIZE:
        secret = os.urandom(SIZE)
        write_atomic(path, secret, mode=0o600)
    try:
        boot = boot_id.read_bytes()
    except OSError:  # not Linux: restarts are told apart from copies by the file alone
        boot = b""
    return hashlib.sha256(secret + boot).hexdigest()[: 2 * SIZE]
