"""Attacks on the page: by another user of the machine, by a website in the person's browser, by a hostile client."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flamest.agent.labelling import connections
from flamest.agent.labelling.access import WRONG_EVERY_S, WRONG_TOKENS, Access, Refused
from flamest.agent.labelling.answers import MAX_BODY
from flamest.agent.labelling.browser import RedirectFile

from .conftest import Browser

PATHS = (
    "/", "/static/label.js", "/api/state", "/api/events", "/api/near?label=x", "/api/video/x", "/api/proxy/x",
    "/nothing", "/api/video/x/facts", "/static/../server.py",
)  # fmt: skip
POSTS = ("/api/changes", "/api/undo", "/api/redo", "/api/alias", "/api/suggestions")


def raw(page, data: bytes, *, wait_s: float = 10.0) -> bytes:
    """Send bytes as they are; return what comes until the connection ends, or nothing more comes."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=wait_s) as connection:
        connection.sendall(data)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
        return received


def labelled(page) -> bool:
    return (page.folder / "labels.csv").exists()


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_answered_without_the_cookie(shared_page, path):
    for cookie in (
        "",
        f"flamest-label-{shared_page.port}=",
        f"flamest-label-{shared_page.port}=guess",
        "flamest-label=x",
        "\xff=;;=,",
    ):
        stranger = shared_page.stranger()
        stranger.cookie = cookie
        answer = stranger.get(path)
        assert answer.status == 403
        assert b"a.mp4" not in answer.body
        assert answer.body.count(b"\n") <= 1


@pytest.mark.parametrize("path", [*PATHS, "/enter?token=x"])
@pytest.mark.parametrize("base", ["", "/x", "/" + "x" * 32, "//"])
def test_nothing_is_answered_outside_of_the_runs_own_path(shared_page, path, base):
    browser = shared_page.browser()
    browser.base = base
    assert browser.get(path).status == 403


def test_paths_of_two_runs_differ_and_cannot_be_guessed(serve, videos):
    first, second = serve(videos), serve(videos)
    assert first.base != second.base
    assert min(len(first.base), len(second.base)) > 30
    browser = first.browser()
    browser.base = first.base[:-1]
    assert browser.get("/").status == 403


def test_the_program_proves_itself_to_its_own_page_alone(serve, videos):
    first, second = serve(videos), serve(videos)
    stranger = Browser(first.port, "")
    key = bytes.fromhex(first.browser().state()["proof_key"])
    proof = stranger.get("/proof?nonce=abc").json["proof"]
    assert proof == hmac.new(key, b"abc", "sha256").hexdigest()
    assert proof != Browser(second.port, "").get("/proof?nonce=abc").json["proof"]
    assert stranger.get("/proof?nonce=abc", Host="elsewhere.example").status == 403
    assert stranger.get("/proof?nonce=abc", Sec_Fetch_Site="cross-site").status == 403


@pytest.mark.parametrize("path", POSTS)
def test_no_post_is_answered_without_the_cookie(shared_page, path):
    answer = shared_page.stranger().post(path, {"tab": "t", "changes": [], "on": True, "label": "a", "as": "b"})
    assert (answer.status, answer.code) == (403, "no_cookie")


def test_an_address_opens_one_browser_and_a_new_one_is_shown(page, capfd):
    address = page.server.new_address()
    first = page.stranger()
    assert first.enter(address).status == 200
    assert "HttpOnly" in first.get("/api/state").headers.get("set-cookie", "HttpOnly")
    second = page.stranger()
    answer = second.enter(address)
    assert answer.status == 403
    assert b"used already" in answer.body
    assert second.get("/api/state").status == 403
    shown = capfd.readouterr().out.strip().splitlines()[-1].strip()
    assert second.enter(shown).status == 200
    assert first.get("/api/state").status == second.get("/api/state").status == 200
    assert first.enter(address).status == 200  # the same browser may load it again


def test_the_cookie_is_for_this_site_and_no_script(shared_page):
    browser = shared_page.stranger()
    cookie = browser.enter(shared_page.server.new_address()).headers["set-cookie"]
    assert cookie.startswith(f"flamest-label-{shared_page.port}=")
    assert {"HttpOnly", "SameSite=strict", f"Path={shared_page.base}"} <= {part.strip() for part in cookie.split(";")}


def test_a_head_request_does_not_use_an_address_up(shared_page):
    address = shared_page.server.new_address()
    path = address.partition(shared_page.base)[2]
    assert shared_page.stranger().ask("HEAD", path).status == 405
    assert shared_page.stranger().enter(address).status == 200


def test_guessing_is_limited_and_does_not_lock_the_owner_out(page):
    stranger = page.stranger()
    address = page.server.new_address()
    token = address.partition("token=")[2]
    statuses = [stranger.get(f"/enter?token={token}{index}").status for index in range(WRONG_TOKENS + 10)]
    assert statuses[0] == 403
    assert statuses[-1] == 429
    assert stranger.enter(address).status == 200


def test_wrong_addresses_are_counted_over_time():
    now = [0.0]
    access = Access(1, clock=lambda: now[0])

    def status() -> int:
        with pytest.raises(Refused) as refused:
            access.exchange("wrong")
        return refused.value.status

    assert [status() for _ in range(WRONG_TOKENS + 1)] == [403] * WRONG_TOKENS + [429]
    now[0] += WRONG_EVERY_S
    assert [status(), status()] == [403, 429]
    with pytest.raises(Refused):
        access.exchange("")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:{port}", "127.0.0.1@evil.example", "", "127.0.0.2",
     "[::2]", "0.0.0.0", "localhost.", "2130706433", "127.1", "localhost:x", "localhost:1:2", "local\u017fost"],
)  # fmt: skip
def test_a_name_that_another_site_gave_this_machine_is_refused(shared_page, host):
    browser = shared_page.browser()
    host = host.format(port=shared_page.port)
    head = f"GET {browser.base}/api/state HTTP/1.1\r\nHost: {host}\r\nCookie: {browser.cookie}\r\n"
    answer = raw(shared_page, f"{head}Connection: close\r\n\r\n".encode())
    assert answer.split()[1] in (b"403", b"400")
    assert b"a.mp4" not in answer


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:{port}", "localhost"])
def test_a_forwarded_port_reaches_the_page(shared_page, host):
    browser = shared_page.browser()
    host = host.format(port=shared_page.port)
    assert browser.get("/api/state", Host=host).status == 200
    answer = browser.post("/api/undo", {"tab": "t"}, Host=host, Origin=f"http://{host}")
    assert answer.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:{port}"},
        {"X_Flamest": ""},
        {"X_Flamest": "1"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_post_of_another_page_changes_nothing(shared_page, headers):
    browser = shared_page.browser()
    change = {"op": "put", "video": browser.video("a.mp4")["id"], "label": "hacked", "start_s": 1, "end_s": 2}
    named = {name: value.format(port=shared_page.port) for name, value in headers.items()}
    answer = browser.post("/api/changes", {"tab": "t", "changes": [change]}, **named)
    assert answer.status in (403, 415)
    assert not labelled(shared_page)


def test_another_page_may_link_to_this_one_but_loads_nothing_of_it(shared_page):
    browser = shared_page.browser()
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert browser.get("/", **link).status in (200, 404)
    video = browser.video("a.mp4")["id"]
    for path in ("/api/state", f"/api/video/{video}", "/api/events", "/static/label.js"):
        for site in ("cross-site", "same-site"):  # another port of this machine is the same site
            assert browser.get(path, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors").status == 403


def test_every_answer_forbids_frames_scripts_of_others_and_caches(shared_page):
    browser = shared_page.browser()
    answers = [browser.get(path) for path in ("/", "/api/state", "/nothing", "/api/video/x")]
    answers += [
        shared_page.stranger().get("/"),
        shared_page.stranger().get("/api/state"),
        browser.ask("PUT", "/api/state"),
    ]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "CONNECT"])
def test_other_methods_are_refused(shared_page, method):
    browser = shared_page.browser()
    assert browser.ask(method, "/api/state").status == 405
    assert shared_page.stranger().ask(method, "/").status == 405


@pytest.mark.parametrize(
    "path",
    ["../../secret", "..%2f..%2fsecret", "%2e%2e/%2e%2e/secret", "/etc/passwd", "%00", "a.mp4", "..", "%5c..%5csecret"],
)
def test_no_path_leads_to_a_file(shared_page, path):
    (shared_page.folder.parent / "secret").write_text("SECRET")
    browser = shared_page.browser()
    for start in ("/api/video/", "/static/", "/api/proxy/", "/"):
        answer = browser.get(start + path)
        assert answer.status in (400, 404, 405)
        assert b"SECRET" not in answer.body
        assert b"root:" not in answer.body


def test_a_link_out_of_the_folder_is_not_opened(serve, videos):
    secret = videos.parent / "secret.mp4"
    secret.write_text("SECRET")
    (videos / "link.mp4").symlink_to(secret)
    page = serve(videos)
    browser = page.browser()
    video = browser.video("link.mp4")
    assert "outside" in video["problem"]
    assert browser.get(f"/api/video/{video['id']}").status == 409
    swapped = browser.video("a.mp4")["id"]
    (videos / "a.mp4").unlink()
    (videos / "a.mp4").symlink_to(secret)  # since the folder was searched
    answer = browser.get(f"/api/video/{swapped}")
    assert answer.status == 409
    assert b"SECRET" not in answer.body


def test_a_fifo_in_a_videos_place_does_not_block(page):
    browser = page.browser()
    video = browser.video("a.mp4")["id"]
    (page.folder / "a.mp4").unlink()
    os.mkfifo(page.folder / "a.mp4")
    assert browser.get(f"/api/video/{video}").status == 409
    assert browser.get("/api/state").status == 200


def test_an_oversized_body_is_refused(shared_page):
    browser = shared_page.browser()
    browser.tab = "x" * 65
    assert browser.post("/api/undo", {"tab": browser.tab}).status == 400
    assert browser.post("/api/changes", {"tab": "t", "changes": [], "x": "y" * MAX_BODY}).status == 413
    deep = b'{"tab":' + b"[" * 100_000
    head = {"Origin": f"http://127.0.0.1:{shared_page.port}", "X_Flamest": "label", "Content_Type": "application/json"}
    assert browser.ask("POST", "/api/undo", deep, **head).status == 400
    assert browser.ask("POST", "/api/undo", b"\xff\xfe", **head).status == 400
    assert browser.ask("POST", "/api/undo", b"", **head).status == 400
    assert browser.get("/api/state").status == 200


def test_a_long_head_is_refused(shared_page):
    answer = raw(shared_page, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", wait_s=1.0)
    assert not answer or answer.split()[1] in (b"400", b"403", b"431")
    many = b"".join(b"X-%d: y\r\n" % index for index in range(20_000))
    answer = raw(shared_page, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n", wait_s=1.0)
    assert not answer or answer.split()[1] in (b"400", b"403", b"431")
    assert shared_page.browser().get("/api/state").status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET http://evil/ HTTP/1.1\r\nHost: evil\r\n\r\n",
        b"GET /\r\nX: y HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%0d%0aSet-Cookie:%20a=b HTTP/1.0\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\n\n\n\n",
        b"GET /enter?token=%0d%0aSet-Cookie:x=y HTTP/1.0\r\nHost: localhost\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_of_this_page_get_nothing(shared_page, data):
    answer = raw(shared_page, data, wait_s=0.7)
    assert not answer or answer.split()[1] in (b"400", b"403", b"405")
    assert b"set-cookie" not in answer.lower()
    assert shared_page.browser().get("/api/state").status == 200


def test_an_upgrade_to_a_websocket_is_not_made(shared_page):
    browser = shared_page.browser()
    answer = browser.get("/api/events/x", Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Version="13")
    assert answer.status in (400, 404)


def test_idle_connections_of_strangers_do_not_keep_the_page_from_its_owner(page):
    with contextlib.ExitStack() as stack:
        for _ in range(connections.MAX_STRANGERS * 4):
            idle = socket.create_connection(("127.0.0.1", page.port), timeout=5)
            stack.callback(idle.close)
            with contextlib.suppress(OSError):
                idle.sendall(b"GET / HT")
        browser = page.browser()
        assert browser.put("a.mp4", "fall").json["applied"] == 1


def test_a_request_that_does_not_arrive_is_cut_off(serve, videos, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_WITHIN_S", 0.5)
    page = serve(videos)
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as slow:
        sent = 0
        with contextlib.suppress(OSError):
            for letter in b"GET / HTTP/1.1\r\nX: " + b"y" * 1000:  # one at a time, never done
                slow.send(bytes([letter]))
                sent += 1
                time.sleep(0.05)
        assert sent < 1000


def test_a_body_that_does_not_arrive_is_given_up(serve, videos, monkeypatch):
    monkeypatch.setattr("flamest.agent.labelling.answers.BODY_WITHIN_S", 0.3)
    page = serve(videos)
    browser = page.browser()
    head = (
        f"POST {browser.base}/api/undo HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nX-Flamest: label\r\n"
        f"Content-Type: application/json\r\nCookie: {browser.cookie}\r\nContent-Length: 100\r\n\r\n{{"
    )
    assert raw(page, head.encode(), wait_s=8).split()[1] == b"408"
    assert browser.get("/api/state").status == 200


def test_the_address_is_in_no_command_line_and_its_file_is_private(tmp_path, monkeypatch):
    file = RedirectFile("http://127.0.0.1:1/enter?token=SECRET&x=\"'<")
    try:
        assert file.path.stat().st_mode & 0o777 == 0o600
        assert file.path.parent.stat().st_mode & 0o777 == 0o700
        assert "SECRET" not in file.path.as_uri()
        assert "SECRET&amp;x=&quot;&#x27;&lt;" in file.path.read_text()
    finally:
        file.close()
    assert not file.path.exists()


def test_only_loopback_is_listened_on(shared_page):
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    own = [
        line.split()[1]
        for line in lines
        if line.split()[1].endswith(f":{shared_page.port:04X}") and line.split()[3] == "0A"
    ]
    assert own == [f"0100007F:{shared_page.port:04X}"]
    assert not any(f":{shared_page.port:04X} " in line for line in Path("/proc/net/tcp6").read_text().splitlines())


DAEMON = """
import sys
import flamest.agent.daemon, flamest.agent.tasks, flamest.agent.worker, flamest.agent.new_clips
import flamest.agent.extraction.extract, flamest.agent.cli.main, flamest.agent.cli.daemon
print(sorted(name for name in sys.modules if name.split(".")[0] in ("starlette", "uvicorn", "h11", "anyio")))
print(sorted(name for name in sys.modules if name.startswith("flamest.agent.labelling.")))
"""


def test_the_daemon_loads_no_server():
    done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
