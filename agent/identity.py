"""What tells this agent from another one with the same certificate: 16 bytes, the same over its restarts.

They follow from a random file in the state folder and from the machine's boot identifier: an agent that is started
again is itself, a copied certificate is another, and so is a copied machine. So is this one after a reboot: it then
waits until the coordinator's lease of the one before is over (decision 021).

The silo's own key, made where it stays.

This silo's certificate while the daemon runs: new files are taken into use, and its end is told in time.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import FlamestError, StorageError, UnreachableError
from ..base.files import write_atomic, write_new
from ..base.log import Log
from ..fedproto.certificates import make_silo_request
from ..fedproto.tls import WARN_DAYS, TlsFiles, file_stamps
from .client import ClientStopped, CoordinatorClient
from .status import renewal_fix

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


WARN_EVERY_S = 86400.0

log = Log("agent")


class Renewal:
    """A link's: looked at between rounds, by the daemon alone."""

    def __init__(self, link: CoordinatorClient, files: TlsFiles) -> None:
        self._link = link
        self._files = files
        self._refused: object = None  # the files that could not be used, as they were then
        self.problem = ""  # why files that are there are not in use: it may name them, so it is for the status
        self._warned = -WARN_EVERY_S
        self.warn_daily()

    @property
    def expires(self) -> str:
        """When the certificate in use ends: UTC, ISO 8601."""
        return f"{self._link.certificate.expires:%Y-%m-%dT%H:%M:%SZ}"

    def look(self, *, asked: bool = False) -> bool:
        """Take new files into use; True when the link goes over them from now on. Costs three stat() otherwise.

        They are new when they differ from those in use and were not refused before, or when a person asked (SIGHUP).
        Files that cannot be used change nothing; the log has the code, and ``problem`` says why.
        """
        found = file_stamps(self._files)
        if not asked and (found == self._refused or not self._link.files_changed):
            return False
        try:
            self._link.reopen()
        except ClientStopped:
            return False
        except FlamestError as error:
            not_theirs = isinstance(error, UnreachableError | StorageError)
            self._refused = None if not_theirs else found
            self.problem = " ".join((f"{error.code}: {error.message}", error.fix)).strip()
            log.error("certificate_kept", code=error.code, until=self.expires, see="flamest-agent status")
            log.debug("certificate_kept", detail=error.message)
            return False
        self.problem = ""
        log.info("certificate_reloaded", days=round(self._link.certificate.days_left), until=self.expires)
        self._warned = -WARN_EVERY_S
        self.warn_daily()
        return True

    def warn_daily(self) -> None:
        """Say once a day that the certificate in use ends within ``WARN_DAYS``."""
        left = self._link.certificate.days_left
        if left < WARN_DAYS and time.monotonic() - self._warned >= WARN_EVERY_S:
            self._warned = time.monotonic()
            log.warning("certificate_expires", days=round(left), until=self.expires, fix=renewal_fix(self._link.silo))
