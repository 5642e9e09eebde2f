"""Videos in parts, facts of them, and the events that every open page hears."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time

import pytest
from flamest.agent.labelling import events
from flamest.agent.labelling.access import Refused
from flamest.agent.labelling.file_part import parse_range
from flamest.base.files import Stopped


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-", (0, 100)), ("bytes=0-0", (0, 1)), ("bytes=10-19", (10, 20)), ("bytes=90-500", (90, 100)),
        ("bytes=-5", (95, 100)), ("bytes=-500", (0, 100)), (None, None), ("", None), ("bytes=-", None),
        ("bytes=5-4", None), ("bytes=0-1,5-6", None), ("items=0-1", None), ("bytes=a-b", None), ("bytes=1-x", None),
        ("bytes= 0-1", None), ("bytes=\u0661-", None),
    ],
)  # fmt: skip
def test_one_range_is_read_and_anything_else_is_ignored(header, part):
    assert parse_range(header, 100) == part


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=999999999999999999-"])
def test_a_range_after_the_end_is_refused(header):
    with pytest.raises(Refused) as refused:
        parse_range(header, 100)
    assert refused.value.status == 416


def test_a_video_is_sent_whole_or_in_part(shared_page):
    browser = shared_page.browser()
    path = f"/api/video/{browser.video('a.mp4')['id']}"
    whole = (shared_page.folder / "a.mp4").read_bytes()
    answer = browser.get(path)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, whole, "video/mp4")
    answer = browser.get(path, Range="bytes=1001-2000")
    assert (answer.status, answer.body) == (206, whole[1001:2001])
    assert answer.headers["content-range"] == f"bytes 1001-2000/{len(whole)}"
    head = browser.ask("HEAD", path)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(whole)))
    assert browser.get(path, Range="bytes=5000-").status == 416


def test_a_video_that_no_browser_plays_is_not_sent(shared_page):
    browser = shared_page.browser()
    answer = browser.get(f"/api/video/{browser.video('c.avi')['id']}")
    assert (answer.status, answer.code) == (409, "not_playable")


def test_a_reader_that_goes_leaves_no_file_open(serve, videos):
    import psutil

    with (videos / "big.mp4").open("wb") as file:
        file.truncate(1 << 30)
    page = serve(videos)
    browser = page.browser()
    video = browser.video("big.mp4")["id"]
    request = f"GET {browser.base}/api/video/{video} HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\n\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", page.port)) as connection:
            connection.sendall(request.encode())
            assert connection.recv(100_000)
    for _ in range(100):
        if not any("big.mp4" in file.path for file in psutil.Process().open_files()):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the file is open still")
    assert browser.put("a.mp4", "fall").json["applied"] == 1


class Listener:
    """Reads the events of a browser in a thread."""

    def __init__(self, browser):
        self.found = []
        self.socket = socket.create_connection(("127.0.0.1", browser.port), timeout=30)
        head = f"GET {browser.base}/api/events HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\n\r\n"
        self.socket.sendall(head.encode())
        self.file = self.socket.makefile("rb")
        assert b"200" in self.file.readline()
        self.ended = False
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        name = ""
        with contextlib.suppress(OSError, ValueError):
            for line in self.file:
                if line == b"0\r\n":  # the last chunk
                    break
                word, _, rest = line.decode().strip().partition(": ")
                if word == "event":
                    name = rest
                elif word == "data":
                    self.found.append((name, json.loads(rest)))
        self.ended = True

    def wait_for(self, name):
        for _ in range(300):
            if any(found == name for found, _ in self.found):
                return [data for found, data in self.found if found == name]
            time.sleep(0.05)
        raise AssertionError(f"no {name}: {self.found}")

    def close(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.file.close()
        self.socket.close()


@pytest.fixture
def listen_to():
    with contextlib.ExitStack() as stack:

        def listen(browser):
            listener = Listener(browser)
            stack.callback(listener.close)
            return listener

        yield listen


def test_every_page_hears_of_a_change_whoever_made_it(page, listen_to):
    one, other = page.browser(), page.browser()
    listener = listen_to(other)
    revision = one.put("a.mp4", "fall").json["revision"]
    assert listener.wait_for("changed")[-1] == {"revision": revision}
    listener.found.clear()
    (page.folder / "labels.csv").write_text("path,label\nb.mp4,walk\n")
    assert listener.wait_for("changed")[-1] == {"revision": one.state()["revision"]}


def test_a_new_video_is_an_event(serve, videos, listen_to, monkeypatch):
    monkeypatch.setattr("flamest.agent.labelling.page_state.RESCAN_EVERY_S", 0.1)
    page = serve(videos)
    browser = page.browser()
    listener = listen_to(browser)
    (videos / "new.mp4").write_bytes(b"x")
    listener.wait_for("video")
    assert browser.put("new.mp4", "fall").json["applied"] == 1


def test_the_oldest_stream_of_a_browser_gives_way(page, listen_to):
    browser = page.browser()
    listeners = [listen_to(browser) for _ in range(events.MAX_PAGES_OF_A_BROWSER + 1)]
    listeners[0].thread.join(20)
    assert [listener.ended for listener in listeners] == [True, *[False] * events.MAX_PAGES_OF_A_BROWSER]
    assert browser.get("/api/state").status == 200


def test_facts_say_how_long_a_video_is_and_where_frames_are(serve, videos, clips):
    clips.write_clip(videos / "real.avi", frames=50, rate=25)
    page = serve(videos)
    browser = page.browser()
    facts = browser.get(f"/api/video/{browser.video('real.avi')['id']}/facts").json
    assert (facts["frames"], facts["fps"], facts["variable"], facts["duration_s"]) == (50, 25.0, False, 2.0)
    assert facts["key_frames_s"][0] == 0.0
    assert browser.video("real.avi")["duration_s"] == 2.0
    damaged = browser.get(f"/api/video/{browser.video('a.mp4')['id']}/facts")
    assert (damaged.status, damaged.code) == (409, "video_not_video")


def test_a_file_that_shrinks_while_it_is_sent_ends_the_answer_only(serve, videos):
    with (videos / "big.mp4").open("wb") as file:
        file.truncate(64 << 20)
    page = serve(videos)
    browser = page.browser()
    video = browser.video("big.mp4")["id"]
    request = f"GET {browser.base}/api/video/{video} HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as connection:
        connection.sendall(request.encode())
        received = len(connection.recv(1000))
        os.truncate(videos / "big.mp4", 0)
        while chunk := connection.recv(1 << 20):
            received += len(chunk)
    assert received < 64 << 20
    assert browser.get("/api/state").status == 200


def test_a_piece_of_a_video_that_browsers_do_not_play_is_webm(serve, videos, clips):
    clips.write_clip(videos / "real.avi", frames=50, rate=25)
    page = serve(videos)
    browser = page.browser()
    proxy = f"/api/proxy/{browser.video('real.avi')['id']}"
    first = browser.get(f"{proxy}?start_s=0&seconds=1")
    assert (first.status, first.headers["content-type"], first.body[:4]) == (200, "video/webm", b"\x1a\x45\xdf\xa3")
    assert browser.get(f"{proxy}?start_s=0&seconds=1").body == first.body
    after = browser.get(f"{proxy}?start_s=100&seconds=1")
    assert (after.status, after.code) == (409, "segment_outside")
    damaged = browser.get(f"/api/proxy/{browser.video('c.avi')['id']}?start_s=0&seconds=1")
    assert (damaged.status, damaged.code) == (409, "video_not_video")
    for query in ("start_s=-1", "start_s=nan", "start_s=inf", "start_s=x", "seconds=61", "start_s=1e400"):
        assert browser.get(f"{proxy}?{query}").status == 400


def test_a_piece_that_no_one_waits_for_is_given_up(serve, videos, monkeypatch):
    reading, stopped = threading.Event(), threading.Event()

    class SlowDecoder:
        def __init__(self, *_):
            self.ended = threading.Event()

        def proxy(self, *_, **__):
            reading.set()
            self.ended.wait(30)
            stopped.set()
            raise Stopped

        def interrupt(self):
            self.ended.set()

        def close(self):
            pass

    monkeypatch.setattr("flamest.agent.labelling.proxies.VideoDecoder", SlowDecoder)
    page = serve(videos)
    browser = page.browser()
    video = browser.video("c.avi")["id"]
    request = f"GET {browser.base}/api/proxy/{video} HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as connection:
        connection.sendall(request.encode())
        assert reading.wait(20)
        assert browser.put("a.mp4", "fall").json["applied"] == 1  # nothing waits for a piece
    assert stopped.wait(20)
