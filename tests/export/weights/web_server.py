"""A web server on loopback that answers as the Hugging Face hub and a model zoo do, or wrongly in the way that a test
wants.

``Web.hub`` holds repositories by name: their files are served under the paths of the hub (tree, resolve, a redirect to
another path for large files, as the hub sends to its CDN). ``Web.files`` holds other files by path. ``Web.faults``
holds what goes wrong, by the path that it goes wrong at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
LOGIN_PAGE = b"<!DOCTYPE html>\n<html><head><title>Guest network</title></head><body>Please log in</body></html>\n"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 989820849\n"
LARGE = (".bin", ".safetensors", ".h5")  # in Git LFS


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Web:
    """Content of the server, its faults, and the requests that it got."""

    address: str = ""
    hub: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository -> name -> content
    commits: dict[str, str] = field(default_factory=dict)  # repository -> commit; COMMIT when not given
    files: dict[str, bytes] = field(default_factory=dict)  # path -> content
    faults: dict[str, Callable[[Answer], None]] = field(default_factory=dict)  # by a part of the path
    asked: list[str] = field(default_factory=list)  # "GET /path", in order
    ranges: list[str] = field(default_factory=list)

    def fault(self, path: str) -> Callable[[Answer], None] | None:
        return next((fault for part, fault in self.faults.items() if part in path), None)


class Answer(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.web.asked.append(f"{self.command} {path}")
        if fault := self.web.fault(path):
            fault(self)
            return
        if path in self.web.files:
            self.send_file(self.web.files[path])
            return
        self._hub(path)

    def _hub(self, path: str) -> None:
        for repository, files in self.web.hub.items():
            commit = self.web.commits.get(repository, COMMIT)
            rest = path.removeprefix(f"/api/models/{repository}")
            if rest != path and rest.startswith("/tree/"):
                self.send(200, json.dumps([_entry(name, data) for name, data in files.items()]).encode())
                return
            if rest != path:
                siblings = [{"rfilename": name} for name in files]
                self.send(200, json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode())
                return
            for kind in ("resolve", "cdn"):
                revision, _, name = path.removeprefix(f"/{repository}/{kind}/").partition("/")
                if path.startswith(f"/{repository}/{kind}/") and revision in (commit, "main") and name in files:
                    self._hub_file(repository, commit, name, files[name], kind)
                    return
        self.send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})

    def _hub_file(self, repository: str, commit: str, name: str, data: bytes, kind: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(data)}"'}
        if kind == "resolve" and name.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{digest}"'}
            cdn = self.web.address.replace("127.0.0.1", "localhost")  # another host, as the hub has it
            headers |= {"Location": f"{cdn}/{repository}/cdn/{commit}/{name}"}
            self.send(302, b"", headers)
            return
        self.send_file(data, headers)

    def send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a file, or the rest of it that was asked for."""
        start = 0
        if wanted := self.headers.get("Range"):
            self.web.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        head = {"ETag": '"1"', "Accept-Ranges": "bytes", **(headers or {})}
        if start:
            head["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, data[start:], head)

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
    return entry


def status(code: int, headers: dict[str, str] | None = None) -> Callable[[Answer], None]:
    """Fault: answer with an HTTP status."""
    return lambda answer: answer.send(code, b"no", headers)


def login_page(answer: Answer) -> None:
    """Fault: a captive portal answers every request with its page."""
    answer.send(200, LOGIN_PAGE, {"Content-Type": "text/html; charset=utf-8"})


def cut_after(data: bytes, sent: int, *, times: int = 1 << 30) -> Callable[[Answer], None]:
    """Fault: the connection ends after ``sent`` bytes of the answer, the first ``times`` times that it is asked."""
    left = [times]

    def cut(answer: Answer) -> None:
        start = int((answer.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if answer.command == "HEAD" or left[0] <= 0:
            answer.send_file(data)
            return
        left[0] -= 1
        if start:
            answer.web.ranges.append(answer.headers["Range"])
        answer.send_response(206 if start else 200)
        if start:
            answer.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        answer.send_header("ETag", '"1"')
        answer.send_header("Content-Length", str(len(data) - start))
        answer.end_headers()
        answer.wfile.write(data[start : start + sent])
        answer.close_connection = True

    return cut


def endless_redirect(answer: Answer) -> None:
    """Fault: the address leads to itself."""
    answer.send(302, b"", {"Location": f"{answer.web.address}{answer.path}"})


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that has gone: it does not read on what it refuses."""


@contextlib.contextmanager
def serving() -> Iterator[Web]:
    """A server on a free port of loopback while the block runs."""
    web = Web()
    server = _QuietServer(("127.0.0.1", 0), type("Bound", (Answer,), {"web": web}))
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
