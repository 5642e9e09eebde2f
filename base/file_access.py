"""Permissions of a file that replaces another one, or is next to it: never more than that one's."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple


class Access(NamedTuple):
    """Permissions of a file, and the user and group that they are for; -1: those of whoever makes it."""

    mode: int
    user: int = -1
    group: int = -1

    @classmethod
    def of(cls, path: Path) -> Access:
        """Return those of a file that is to be replaced. Raises OSError."""
        status = path.stat()
        return cls(status.st_mode & 0o777, status.st_uid, status.st_gid)

    def give_to(self, handle: int) -> None:
        """Set them for an open file of this user. A group that this user may not give gets no permission."""
        mode = self.mode
        if self.group >= 0 and os.fstat(handle).st_gid != self.group:
            try:
                os.fchown(handle, -1, self.group)
            except OSError:
                mode &= ~0o070
        os.fchmod(handle, mode)
        if self.user >= 0:
            with contextlib.suppress(OSError):  # root only, where it is another one
                os.fchown(handle, self.user, -1)


def current_umask() -> int:
    """Return the permissions that this process gives no new file; asked for without changing it for other threads."""
    try:
        found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1], 8) if found else 0o022
