"""Opening the page in the person's browser, so that the one-time address is in no command line that others can list.

Every user of a machine can read the arguments of every process. The browser gets the name of a file that only this user
may read, and the file leads it to the address.
"""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import tempfile
import threading
import webbrowser
from pathlib import Path

TEXT_BROWSERS = frozenset({"www-browser", "links", "elinks", "lynx", "w3m"})  # they would take the terminal over
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<title>FLAMeST</title><meta http-equiv="refresh" content="0;url={address}"><p><a href="{address}">Open the page</a></p>
"""


class RedirectFile:
    """A file, mode 0600 in a folder of mode 0700, that leads a browser to an address. Removed by ``close``."""

    def __init__(self, address: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="flamest-label-"))
        self.path = self._folder / "open.html"
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(PAGE.format(address=html.escape(address, quote=True)))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def find_browser() -> webbrowser.BaseBrowser | None:
    """Return the person's graphical browser; None where there is none, as on a server."""
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return None
    return None if Path(str(getattr(found, "name", ""))).name in TEXT_BROWSERS else found


def open_in_browser(browser: webbrowser.BaseBrowser, file: RedirectFile) -> None:
    """Open the file in the browser, in a thread of its own: some browsers return when they are closed."""

    def opened() -> None:
        with contextlib.suppress(Exception):  # the address is in the terminal too
            browser.open(file.path.as_uri())

    threading.Thread(target=opened, name="browser", daemon=True).start()
