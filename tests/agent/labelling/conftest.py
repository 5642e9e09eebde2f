"""A folder of videos, the page's server on loopback in a thread, and browsers that speak HTTP to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flamest.agent.labelling.book import LabelBook
from flamest.agent.labelling.server import LabelRequest, PageServer, listen
from flamest.base.process import Shutdown

HOST = "127.0.0.1"


class Answer:
    """Status, headers in lower case and body of an answer."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.body = answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class Browser:
    """One browser: it keeps its cookie, and sends the headers that the page's script sends."""

    def __init__(self, port: int, base: str) -> None:
        self.port = port
        self.base = base  # the run's own path; "" for one that does not know it
        self.cookie = ""
        self.tab = "tab-1"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send one request with exactly these headers, and the cookie."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=30)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            cookie = {"Cookie": self.cookie} if self.cookie else {}
            connection.request(method, self.base + path, body, {**cookie, **named})
            return Answer(connection.getresponse())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, content: Any, **headers: str) -> Answer:
        own = {
            "Origin": f"http://{HOST}:{self.port}",
            "X_Flamest": "label",
            "Content_Type": "application/json",
            **headers,
        }
        return self.ask("POST", path, json.dumps(content).encode(), **own)

    def enter(self, address: str) -> Answer:
        answer = self.get(address.partition(f":{self.port}{self.base}")[2])
        self.cookie = answer.headers.get("set-cookie", "").partition(";")[0]
        return answer

    def state(self) -> Any:
        answer = self.get(f"/api/state?tab={self.tab}")
        assert answer.status == 200, answer.body
        return answer.json

    def video(self, name: str) -> Any:
        return next(video for video in self.state()["videos"] if video["name"] == name)

    def put(self, name: str, label: str | None, **fields: Any) -> Answer:
        """Label a whole video, in the place of the row that it has."""
        video = self.video(name)
        whole = next((row for row in video["rows"] if row["start_s"] is None), None)
        change = {"op": "put", "video": video["id"], "label": label}
        if whole is not None and "start_s" not in fields:
            change |= {"replaces": {"start_s": None, "end_s": None}, "expected": whole}
        return self.post("/api/changes", {"tab": self.tab, "changes": [{**change, **fields}]})


class Served:
    """A running server."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.listener = listen(0)
        self.port: int = self.listener.getsockname()[1]
        self.book = LabelBook(folder)
        self.shutdown = Shutdown()
        self.server = PageServer(LabelRequest(folder, open_browser=False, **options), self.book, self.listener)
        self.base = urlsplit(self.server.new_address()).path.removesuffix("/enter")
        self.thread = threading.Thread(target=self.server.run, args=(self.shutdown,))
        self.thread.start()
        assert self.server.ready.wait(30)

    def browser(self) -> Browser:
        """Return a browser that is in."""
        browser = Browser(self.port, self.base)
        assert browser.enter(self.server.new_address()).status == 200
        return browser

    def stranger(self) -> Browser:
        return Browser(self.port, self.base)

    def close(self) -> None:
        self.shutdown.request()
        self.thread.join(20)
        self.listener.close()
        assert not self.thread.is_alive()


def make_videos(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.avi", "d.webm"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Four files that are videos by their names, in no class folder."""
    return make_videos(tmp_path / "videos")


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """``serve(folder)``: a running server for it."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path, **options: Any) -> Served:
            served = Served(folder, **options)
            stack.callback(served.close)
            return served

        yield start


@pytest.fixture
def page(serve: Callable[..., Served], videos: Path) -> Served:
    return serve(videos)


@pytest.fixture(scope="module")
def shared_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for tests that write no label."""
    served = Served(make_videos(tmp_path_factory.mktemp("shared") / "videos"))
    yield served
    served.close()
    assert not (served.folder / "labels.csv").exists()
