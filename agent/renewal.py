"""This silo's certificate while the daemon runs: new files are taken into use, and its end is told in time."""

from __future__ import annotations

import time

from ..base.errors import FlamestError, StorageError, UnreachableError
from ..base.log import Log
from ..fedproto.tls import WARN_DAYS, TlsFiles, files_mark
from .link import Link, LinkStopped
from .status import renewal_fix

WARN_EVERY_S = 86400.0

log = Log("agent")


class Renewal:
    """A link's: looked at between rounds, by the daemon alone."""

    def __init__(self, link: Link, files: TlsFiles) -> None:
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
        found = files_mark(self._files)
        if not asked and (found == self._refused or not self._link.files_changed):
            return False
        try:
            self._link.reopen()
        except LinkStopped:
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
