"""Renewal of this silo's certificate while the daemon runs, and the warning before it ends."""

from __future__ import annotations

import time

from ..base.errors import FlamestError, StorageError, UnreachableError
from ..base.log import Log
from ..fedproto.tls import WARN_DAYS, file_stamps
from .client import ClientStopped, CoordinatorClient
from .egress.guard import EgressGuard
from .status import renewal_fix

WARN_EVERY_S = 86400.0

log = Log("agent")


class Renewal:
    """Replaces a client's certificate between rounds; used by the daemon alone."""

    def __init__(self, client: CoordinatorClient, guard: EgressGuard) -> None:
        self._client = client
        self._guard = guard
        self._refused: object = None  # stamps of the files that could not be used
        self.problem = ""  # why new files are not in use: it may name them, so it is for the status only
        self._warned = -WARN_EVERY_S
        self.warn_daily()

    @property
    def expires(self) -> str:
        """End of the certificate in use: UTC, ISO 8601."""
        return f"{self._client.certificate.expires:%Y-%m-%dT%H:%M:%SZ}"

    @property
    def sha256(self) -> str:
        """SHA-256 of the certificate in use, in DER form."""
        return self._client.certificate.sha256

    def reload(self, *, requested: bool = False) -> bool:
        """Use new certificate files, if there are any; True when the client connects with them from now on.

        Files are new when they differ from those in use and were not refused before, or when a person requested it
        (SIGHUP). Files that cannot be used change nothing; the log has the code, and ``problem`` the reason. Without
        new files this costs three stat().
        """
        found = file_stamps(self._client.settings.files)
        if not requested and (found == self._refused or not self._client.files_changed):
            return False
        try:
            with self._client.open_renewed() as renewed:
                self._guard.record_certificate(self._client.settings)
                self._client.switch_to(renewed)
        except ClientStopped:
            return False
        except FlamestError as error:
            may_pass = isinstance(error, UnreachableError | StorageError)
            self._refused = None if may_pass else found
            self.problem = f"{error.code}: {error.with_fix}"
            log.error("certificate_reload_failed", code=error.code, until=self.expires, see="flamest-agent status")
            log.debug("certificate_reload_failed", detail=error.message)
            return False
        self.problem = ""
        log.info("certificate_reloaded", days=round(self._client.certificate.days_left), until=self.expires)
        self._warned = -WARN_EVERY_S
        self.warn_daily()
        return True

    def warn_daily(self) -> None:
        """Warn once a day that the certificate in use ends within ``WARN_DAYS``."""
        left = self._client.certificate.days_left
        if left < WARN_DAYS and time.monotonic() - self._warned >= WARN_EVERY_S:
            self._warned = time.monotonic()
            log.warning("certificate_expires", days=round(left), until=self.expires, fix=renewal_fix(self._client.silo))
