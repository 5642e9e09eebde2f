"""Download of one file: continued where a connection ended, and in its place only when it is whole.

A model zoo states no length or hash outside of its answer. PyTorch's own downloader keeps whatever arrives,
so half a file or a login page would stay in its cache. Here the answer's length is compared, and what is known of the
file: its size and hash, and that it is no web page. Proxies are those of the environment (https_proxy, no_proxy).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...base.errors import StorageError, UnreachableError, printable
from ...base.files import fsync_directory, printable_path, storage_code
from ...base.progress import progress_bar
from .file_kind import HEAD, looks_like_page
from .network_errors import LOGIN_PAGE, network_problem

TIMEOUT_S = 30.0  # without a byte
ATTEMPTS = 5  # in a row without a byte
WAIT_S = (1.0, 2.0, 4.0, 8.0)  # before each further attempt
LONGEST_WAIT_S = 60.0  # that a server's Retry-After may ask for
CHUNK = 1 << 20  # bytes
LARGEST = 16 << 30  # bytes of any file
MB = 1_000_000
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Wanted:
    """The file to fetch, and what is known of it."""

    url: str
    name: str  # for messages
    bytes: int = 0  # 0: not known
    sha256: str = ""  # empty: not known
    largest: int = LARGEST


class _Refused(Exception):
    """Something else than the file arrives; another attempt would bring the same."""


class _Lost(Exception):
    """The network failed: what urllib or the socket raised is its cause, and never comes from the disk."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows a redirect unless it leads from https to http, where anyone on the way could answer."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise _Refused("it is redirected from https to an address without encryption")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(wanted: Wanted, to: Path, *, fix: str, pause: Callable[[float], None] = time.sleep) -> None:
    """Fetch a file to ``to``, whole or not at all; progress is shown, nothing is left behind when it fails.

    ``fix``: the other way to get the file, for the error. Raises UnreachableError, ``bad_download`` when what arrived
    is not the file; StorageError (``disk_full``).
    """
    part = to.with_name(f".{to.name}.{os.getpid()}.part")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(to)
        with part.open("wb") as file:
            _Transfer(wanted, file, part.parent, pause).run()
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, to)
        fsync_directory(to.parent)
    except _Refused as error:
        raise UnreachableError(
            f"{wanted.name} could not be downloaded from {_host(wanted.url)}: {error}", fix=fix, code="bad_download"
        ) from error
    except _Lost as error:
        problem = network_problem(error.reason)
        raise UnreachableError(
            f"{wanted.name} could not be downloaded from {_host(wanted.url)}: {problem.reason}",
            fix="; or ".join(text for text in (problem.fix, fix) if text),
        ) from error
    except OSError as error:
        raise StorageError(
            f"{wanted.name} cannot be written to {printable_path(to.parent)}: {error.strerror}",
            fix="free some space there, then run the command again",
            code=storage_code(error),
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


class _Transfer:
    """One download: what has arrived, and how much of it there is."""

    def __init__(self, wanted: Wanted, file: BinaryIO, folder: Path, pause: Callable[[float], None]) -> None:
        self._wanted, self._file, self._folder, self._pause = wanted, file, folder, pause
        self._digest = hashlib.sha256()
        self._done = 0
        self._whole: int | None = wanted.bytes or None
        self._answered = False  # the server sent some of the file, or began to
        self._version = ""  # the server's ETag: a file that changes meanwhile is fetched from its beginning

    def run(self) -> None:
        """Fetch all of it, in as many requests as it takes, and compare it with what is known."""
        failed = 0
        while self._whole is None or self._done < self._whole:
            before = self._done
            try:
                self._request()
                if self._whole is None:  # the server named no length, and ended properly
                    self._whole = self._done
                if self._done < self._whole:
                    raise _Lost(http.client.IncompleteRead(b"", self._whole - self._done))
            except _Lost as error:
                failed = failed + 1 if self._done <= before else 1
                if not self._may_pass(error.reason) or failed >= ATTEMPTS:
                    raise
                self._pause(_wait(error.reason, failed))
        self._compare()

    def _may_pass(self, error: Exception) -> bool:
        """True where another attempt may succeed: a busy server, a connection that was there and ended."""
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the answer's connection
            return error.code in _AGAIN
        return self._answered or not isinstance(error, (urllib.error.URLError, ValueError))

    def _request(self) -> None:
        headers = {"User-Agent": "flamest-export", "Accept-Encoding": "identity"}
        if self._done:
            headers |= {"Range": f"bytes={self._done}-"} | ({"If-Range": self._version} if self._version else {})
        opener = urllib.request.build_opener(_OnlyHttps)
        with _network():
            opened = opener.open(urllib.request.Request(self._wanted.url, headers=headers), timeout=TIMEOUT_S)
        with opened as answer:
            self._start(answer)
            title = f"{self._wanted.name} from {_host(self._wanted.url)}"
            with progress_bar(title, max((self._whole or 0) // MB, 1), unit="MB") as progress:
                shown = 0
                while chunk := _read(answer):
                    self._take(chunk)
                    progress.advance(self._done // MB - shown)
                    shown = self._done // MB

    def _start(self, answer: Any) -> None:
        """Compare an answer's length with what is known, and the space on the disk with both."""
        self._answered = True
        if self._done and answer.status != 206:  # from the beginning, although a part was asked for
            self._file.seek(0)
            self._file.truncate()
            self._digest, self._done = hashlib.sha256(), 0
        self._version = answer.headers.get("ETag", "") if not answer.headers.get("ETag", "").startswith("W/") else ""
        length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            return
        whole = self._done + int(length)
        if self._done == 0 and answer.headers.get_content_type() == "text/html":
            raise _Refused(f"{LOGIN_PAGE} ({whole:,} bytes)")
        if self._whole is not None and whole != self._whole:
            raise _Refused(f"it has {whole:,} bytes, expected {self._whole:,}")
        if whole > self._wanted.largest:
            raise _Refused(f"it has {whole:,} bytes, expected at most {self._wanted.largest:,}")
        self._whole = whole
        free = shutil.disk_usage(self._folder).free
        if free < whole - self._done:
            raise OSError(28, f"it has {whole / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")

    def _take(self, chunk: bytes) -> None:
        if self._done == 0 and looks_like_page(chunk[:HEAD]):
            raise _Refused(LOGIN_PAGE)
        self._file.write(chunk)
        self._digest.update(chunk)
        self._done += len(chunk)
        if self._done > (self._whole or self._wanted.largest):
            raise _Refused(f"more than {self._whole or self._wanted.largest:,} bytes arrived")

    def _compare(self) -> None:
        if self._wanted.sha256 and self._digest.hexdigest() != self._wanted.sha256:
            raise _Refused(
                f"the {self._done:,} bytes that arrived have the SHA-256 {self._digest.hexdigest()}, "
                f"expected {self._wanted.sha256}"
            )


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Raise every failure of a request as _Lost: a socket's OSError has the type of a disk's."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Lost(error) from error


def _read(answer: Any) -> bytes:
    with _network():
        return bytes(answer.read(CHUNK))


def _remove_abandoned(to: Path) -> None:
    """Remove what processes that were killed had fetched of this file."""
    for part in to.parent.glob(f".{glob.escape(to.name)}.*.part"):
        process = part.name.split(".")[-2]
        if process.isdecimal() and not Path("/proc", process).exists():
            part.unlink(missing_ok=True)


def _wait(error: Exception, failed: int) -> float:
    """Return the seconds until the next attempt: as the server asks, within bounds."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    return min(float(asked), LONGEST_WAIT_S) if asked.isdecimal() else WAIT_S[min(failed, len(WAIT_S)) - 1]


def _host(url: str) -> str:
    return printable(urllib.parse.urlsplit(url).netloc)
