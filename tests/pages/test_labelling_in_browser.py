"""The page of ``flamest-agent label`` in a browser: the real command, on real videos, by keyboard as a person works."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flamest.runtime.clip_records import Segment

# Tests are no package: there is nothing to import it from.
_spec = importlib.util.spec_from_file_location(
    "flamest_tests_label_process", Path(__file__).with_name("label_process.py")
)
assert _spec is not None
assert _spec.loader is not None
helpers: Any = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(helpers)
labelling, rows, wait_until, write_video = helpers.labelling, helpers.rows, helpers.wait_until, helpers.write_video

pytestmark = pytest.mark.pages

HOSTILE = "<img src=x onerror=alert(1)> \u202e.mp4"
LONG = "long.mp4"
OLD = "old.avi"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of two seconds."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(10):
        write_video(folder / f"clip_{number:02}.mp4", seconds=2, hue=number * 20)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute that a browser plays, and as much that none does."""
    folder = tmp_path_factory.mktemp("recordings")
    write_video(folder / LONG, seconds=30)
    write_video(folder / OLD, seconds=25, codec="mpeg4")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder to label."""
    made = tmp_path / "videos"
    made.mkdir()
    return made


def copy(source: Path, folder: Path, *names: str) -> None:
    for path in sorted(source.iterdir()):
        if not names or path.name in names:
            (folder / path.name).write_bytes(path.read_bytes())


@pytest.fixture
def asked() -> list[str]:
    """Addresses of all requests of all pages of a test."""
    return []


@pytest.fixture
def enter(browser: Any, asked: list[str]) -> Iterator[Callable[..., Any]]:
    """``enter(process)``: the page in a new browser profile, by a one-time address, ready to label."""
    contexts = []

    def entered(process: Any, *, width: int = 1280, scheme: str = "light", welcome: bool = False) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        if not welcome:
            context.add_init_script("localStorage.setItem('flamest-label-seen-help', '1')")
        return opened(context, process.address(), asked)

    yield entered
    for context in contexts:
        context.close()


def opened(context: Any, address: str, asked: list[str]) -> Any:
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.problems = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "console",
        lambda message: page.problems.append(f"{message.text} {message.location}") if message.type == "error" else None,
    )
    page.goto(address)
    page.wait_for_selector("#main:not([aria-busy])")
    return page


def text(page: Any, selector: str) -> str:
    found: str = page.locator(selector).inner_text()
    return found.strip()


def wait_for_text(page: Any, selector: str, expected: str) -> None:
    page.locator(selector).filter(has_text=expected).first.wait_for()


def type_class(page: Any, label: str) -> None:
    """Type a class and take it, by keyboard."""
    page.keyboard.press("t")
    page.keyboard.type(label)
    page.keyboard.press("Enter")


def wait_for_video(page: Any) -> None:
    """Wait until the video's length is known and its first frame is there."""
    page.wait_for_function("() => /\\/ \\d+:\\d\\d\\.\\d\\d/.test(document.querySelector('#time').textContent)")
    page.wait_for_function("() => document.querySelector('#video').readyState >= 2")


def wait_for_time(page: Any, seconds: float, *, within: float = 0.001) -> None:
    page.wait_for_function(
        "([at, within]) => Math.abs(Number(document.querySelector('.playhead').getAttribute('aria-valuenow')) - at)"
        " <= within",
        arg=[seconds, within],
    )


def all_saved(page: Any) -> None:
    page.wait_for_function("() => document.querySelector('#saved').textContent.startsWith('saved ')")


def labels_of(folder: Path) -> dict[str, str | None]:
    return {row.path: row.label for row in rows(folder) if row.segment is None}


def segments_of(folder: Path, name: str) -> list[tuple[float, float, str | None]]:
    found = [row for row in rows(folder) if row.path == name and row.segment is not None]
    return [(row.segment.start_s, row.segment.end_s, row.label) for row in found if row.segment is not None]


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def serious(page: Any) -> list[str]:
    """Findings of axe that are serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{finding['id']}: {node['html'][:200]}"
        for finding in found
        if finding["impact"] in ("serious", "critical")
        for node in finding["nodes"]
    ]


def test_ten_clips_are_labelled_by_keyboard_alone(clips, folder, enter, asked):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        for number in range(10):
            wait_for_text(page, "#video-title", f"clip_{number:02}.mp4")
            if number < 2:
                type_class(page, ["fall", "walk"][number])
            else:
                press(page, str(number % 2 + 1))
            wait_for_text(page, "#target-label", ["fall", "walk"][number % 2])
            press(page, "n")
        all_saved(page)
        assert labels_of(folder) == {f"clip_{n:02}.mp4": ["fall", "walk"][n % 2] for n in range(10)}
        assert text(page, "#progress-text") == "10 of 10 videos labelled"
        assert [text(page, f"#classes li:nth-child({n}) .clips") for n in (1, 2)] == ["5 clips", "5 clips"]
        assert page.problems == []
    assert asked
    assert all(url.startswith((process.origin + "/", f"blob:{process.origin}/")) for url in asked)


def mark(page: Any, start: float, end: float) -> None:
    """Mark a segment by keyboard, from second to second."""
    press(page, "Home", *["ArrowRight"] * int(start))
    wait_for_time(page, start)
    press(page, "i", *["ArrowRight"] * int(end - start))
    wait_for_time(page, end)
    press(page, "o")


@pytest.mark.parametrize("name", [LONG, OLD])
def test_five_segments_are_marked_by_keyboard_alone(name, recordings, folder, enter):
    copy(recordings, folder, name)
    with labelling(folder) as process:
        page = enter(process)
        wait_for_video(page)
        for place, start in enumerate((1, 5, 9, 14, 20)):
            mark(page, start, start + 3)
            wait_for_text(page, "#said", "Now give it a label")
            type_class(page, ["fall", "sit"][place % 2])
            wait_for_text(page, "#target-label", ["fall", "sit"][place % 2])
        all_saved(page)
        # The frames that were seen are the first and the last one: borders lie in the middle between frames.
        expected = [
            (round(s - 0.02, 2), round(s + 3.02, 2), ["fall", "sit"][n % 2]) for n, s in enumerate((1, 5, 9, 14, 20))
        ]
        assert segments_of(folder, name) == expected
        assert labels_of(folder) == {}
        assert page.get_by_role("listbox", name="Segments").get_by_role("option").count() == 5
        assert page.problems == []


def test_a_segment_is_selected_moved_split_and_deleted_by_keyboard(recordings, folder, enter):
    copy(recordings, folder, LONG)
    with labelling(folder) as process:
        page = enter(process)
        wait_for_video(page)
        mark(page, 2, 6)
        type_class(page, "fall")
        mark(page, 10, 12)
        type_class(page, "sit")
        press(page, "k", "Shift+ArrowLeft", "Shift+ArrowLeft")  # the end of the first, two frames earlier
        wait_until(lambda: segments_of(folder, LONG)[0] == (1.98, 5.94, "fall"), "the end is moved")
        press(page, "e", "Shift+ArrowRight")
        wait_until(lambda: segments_of(folder, LONG)[0] == (2.02, 5.94, "fall"), "the start is moved")
        press(page, "Home", *["ArrowRight"] * 4)
        wait_for_time(page, 4)
        press(page, "s")
        wait_until(lambda: len(segments_of(folder, LONG)) == 3, "it is split")
        assert segments_of(folder, LONG)[:2] == [(2.02, 3.98, "fall"), (3.98, 5.94, "fall")]
        press(page, "Delete")
        wait_until(lambda: len(segments_of(folder, LONG)) == 2, "the second part is deleted")
        press(page, "u", "u")
        wait_until(lambda: segments_of(folder, LONG)[0] == (2.02, 5.94, "fall"), "both are undone")
        assert len(segments_of(folder, LONG)) == 2


def test_a_label_waits_until_a_begun_segment_has_its_end(recordings, folder, enter):
    copy(recordings, folder, LONG)
    (folder / "labels.csv").write_text(f"path,label,start_s,end_s\n{LONG},fall,10,14\n")
    with labelling(folder) as process:
        page = enter(process)
        wait_for_video(page)
        press(page, "Escape", "Home", "i", "1")
        wait_for_text(page, "#said", "Press o where it ends")
        assert labels_of(folder) == {}


def test_a_segment_is_moved_by_mouse_and_by_typed_times(recordings, folder, enter):
    copy(recordings, folder, LONG)
    (folder / "labels.csv").write_text(f"path,label,start_s,end_s\n{LONG},fall,10,14\n")
    with labelling(folder) as process:
        page = enter(process)
        wait_for_video(page)
        page.get_by_role("option", name="Segment 1: fall").click()
        wait_for_text(page, "#target", "Segment 1 of 1")
        handle = page.locator("[data-edge=end]").bounding_box()
        track = page.locator(".track").bounding_box()
        page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + 10)
        page.mouse.down()
        page.mouse.move(track["x"] + track["width"] * 20 / 30, handle["y"] + 10, steps=4)
        page.mouse.up()
        wait_until(lambda: segments_of(folder, LONG)[0][1] == pytest.approx(20, abs=0.1), "the end is dragged")
        page.get_by_label("From").fill("0:09.5")
        page.get_by_label("From").press("Enter")
        wait_until(lambda: segments_of(folder, LONG)[0][0] == 9.5, "the start is typed")
        page.get_by_label("From").fill("soon")
        page.get_by_label("From").press("Enter")
        wait_for_text(page, "#said", "Expected a time such as 12.5 or 1:02.5.")
        assert segments_of(folder, LONG)[0][0] == 9.5


def test_the_loop_stays_in_the_segment(recordings, folder, enter):
    copy(recordings, folder, LONG)
    (folder / "labels.csv").write_text(f"path,label,start_s,end_s\n{LONG},fall,10,10.4\n")
    with labelling(folder) as process:
        page = enter(process)
        wait_for_video(page)
        press(page, "j", "l")
        page.wait_for_timeout(1500)
        assert page.evaluate("document.querySelector('#video').paused") is False
        for _ in range(5):
            assert 9.9 < page.evaluate("document.querySelector('#video').currentTime") < 10.7
            page.wait_for_timeout(150)
        press(page, "l")
        assert text(page, "#said") == "Loop off."


def test_undo_and_redo_survive_a_reload(clips, folder, enter):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        type_class(page, "fall")
        press(page, "n")
        type_class(page, "walk")
        wait_until(lambda: labels_of(folder).get("clip_01.mp4") == "walk", "both are saved")
        page.reload()
        page.wait_for_selector("#main:not([aria-busy])")
        wait_for_text(page, "#video-title", "clip_01.mp4")
        press(page, "u")
        wait_for_text(page, "#said", "Undone: walk on the whole video (clip_01.mp4).")
        press(page, "u")
        wait_for_text(page, "#said", "Undone: fall on the whole video (clip_00.mp4).")
        assert set(labels_of(folder).values()) == {None}
        press(page, "U")
        wait_for_text(page, "#said", "Done again")
        assert labels_of(folder)["clip_00.mp4"] == "fall"
        press(page, "Control+z", "u")
        wait_for_text(page, "#said", "Nothing to undo.")


def test_a_label_stays_with_the_video_that_it_was_typed_for(clips, folder, enter):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        type_class(page, "fall")  # the page asks the program for near misses, and the person goes on
        press(page, "n")
        type_class(page, "walk")
        press(page, "n")
        wait_until(lambda: labels_of(folder).get("clip_01.mp4") == "walk", "both are saved")
        assert labels_of(folder)["clip_00.mp4"] == "fall"
        assert labels_of(folder)["clip_02.mp4"] is None


def test_two_tabs_follow_each_other_and_lose_nothing(clips, folder, enter, asked):
    copy(clips, folder)
    with labelling(folder) as process:
        first = enter(process)
        second = opened(first.context, process.page, asked)
        type_class(first, "fall")
        wait_for_text(second, ".video[aria-selected=true] .about", "fall")
        press(second, "n")
        type_class(second, "walk")
        wait_for_text(first, ".video:nth-child(2) .about", "walk")
        press(second, "u")
        wait_for_text(first, ".video:nth-child(2) .about", "no label")
        assert labels_of(folder)["clip_00.mp4"] == "fall"  # the undo of one tab leaves the other's work


def test_a_conflict_shows_both_versions_and_asks(clips, folder, enter, asked):
    copy(clips, folder)
    with labelling(folder) as process:
        first = enter(process)
        type_class(first, "fall")
        all_saved(first)
        second = opened(first.context, process.page, asked)
        wait_for_text(second, "#target-label", "fall")
        for keep, expected in (("Keep mine", "sit"), ("Keep what is in the file", "run")):
            second.route("**/api/changes", lambda route: route.abort())  # so that the first one is first
            type_class(second, "sit")
            wait_for_text(second, "#saved", "not saved yet")
            type_class(first, "run" if keep != "Keep mine" else "walk")
            all_saved(first)
            second.unroute("**/api/changes")
            second.locator("#conflict[open]").wait_for()
            versions = second.locator("#versions .value").all_inner_texts()
            assert versions == ["sit", "run" if keep != "Keep mine" else "walk"]
            assert serious(second) == []
            second.get_by_role("button", name=keep).click()
            wait_until(lambda: labels_of(folder)["clip_00.mp4"] == expected, keep)  # noqa: B023
            if expected == "sit":
                wait_for_text(first, "#target-label", "sit")
                type_class(second, "walk")
                wait_for_text(first, "#target-label", "walk")
                press(second, "u")
                wait_for_text(first, "#target-label", "sit")
                type_class(second, "fall")
                wait_for_text(first, "#target-label", "fall")


def test_a_lost_connection_is_said_and_loses_no_work(clips, folder, enter):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        type_class(page, "fall")
        all_saved(page)
        process.kill()
        wait_for_text(page, "#trouble", "The connection to the program is lost")
        press(page, "n")
        press(page, "1")
        press(page, "n")
        type_class(page, "dance")
        wait_for_text(page, "#saved", "not saved yet")
        assert serious(page) == []
        process.start()
        address = process.address()
        wait_for_text(page, "#trouble", "This window's address is no longer valid")
        page.goto(address)  # as a person opens the new address in this browser
        page.wait_for_selector("#main:not([aria-busy])")
        wait_until(lambda: labels_of(folder).get("clip_02.mp4") == "dance", "the kept changes are saved")
        assert labels_of(folder)["clip_01.mp4"] == "fall"


def test_a_window_left_open_hands_its_work_to_the_new_one(clips, folder, enter, asked):
    copy(clips, folder)
    with labelling(folder) as process:
        left = enter(process)
        type_class(left, "fall")
        all_saved(left)
        process.kill()
        wait_for_text(left, "#trouble", "The connection to the program is lost")
        press(left, "n", "1")
        wait_for_text(left, "#saved", "not saved yet")
        process.start()
        new = opened(left.context, process.address(), asked)
        wait_until(lambda: labels_of(folder).get("clip_01.mp4") == "fall", "the new window saves it")
        wait_for_text(left, "#trouble", "This window's address is no longer valid")
        press(left, "n", "1")  # of no use any more
        press(new, "n")
        all_saved(new)
        assert labels_of(folder)["clip_02.mp4"] is None


@contextlib.contextmanager
def listening(port: int, answer: bytes) -> Iterator[list[tuple[str, str | None, bytes]]]:
    """Another user's program on loopback; yields the path, cookie and body of each request."""
    seen: list[tuple[str, str | None, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.path, self.headers.get("Cookie"), body))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen.append((str(server.server_port), None, b""))
        yield seen
        server.shutdown()


def test_a_listener_on_another_port_gets_no_cookie(clips, folder, enter):
    """A website leads the browser to it, and it loads itself again: for a browser that is the page's own site."""
    copy(clips, folder)
    with labelling(folder) as process, listening(0, b"<meta http-equiv=refresh content=0;url=/again>") as seen:
        page = enter(process)
        port = seen.pop()[0]
        script = f"<script>location='http://127.0.0.1:{port}/'</script>"
        page.route("http://elsewhere.test/", lambda route: route.fulfill(body=script, content_type="text/html"))
        page.goto("http://elsewhere.test/")
        wait_until(lambda: any(path == "/again" for path, _, _ in seen), "it is loaded again")
        assert {cookie for _, cookie, _ in seen} == {None}


def test_whoever_takes_the_port_gets_nothing_of_an_open_window(clips, folder, enter):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        type_class(page, "fall")
        all_saved(page)
        process.kill()
        wait_for_text(page, "#trouble", "The connection to the program is lost")
        press(page, "n", "1")
        wait_for_text(page, "#saved", "not saved yet")
        with listening(process.port, b'{"proof": "x", "revision": "r", "undo": 0, "conflicts": []}') as seen:
            wait_for_text(page, "#trouble", "This window's address is no longer valid")
            page.wait_for_timeout(6000)  # longer than any pause between attempts
            asked = [(path.partition("?")[0], cookie, body) for path, cookie, body in seen[1:]]
        assert set(asked) == {("/proof", None, b"")}


def test_the_work_of_a_closed_window_is_saved_by_the_next(clips, folder, enter, asked):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        page.route("**/api/changes", lambda route: route.abort())
        type_class(page, "fall")
        wait_for_text(page, "#saved", "not saved yet")
        page.on("dialog", lambda dialog: dialog.accept())
        context = page.context
        page.close()
        opened(context, process.page, asked)
        wait_until(lambda: labels_of(folder).get("clip_00.mp4") == "fall", "the next window saves it")


def test_a_near_miss_asks_before_a_class_is_made(clips, folder, enter):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        type_class(page, "fall")
        all_saved(page)
        press(page, "n")
        type_class(page, "Falling")
        page.get_by_role("heading", name="Did you mean fall?").wait_for()
        assert serious(page) == []
        press(page, "Enter")  # the first button takes the class that exists
        wait_until(lambda: labels_of(folder)["clip_01.mp4"] == "fall", "the class that exists is taken")


def test_the_agent_extracts_meanwhile(clips, recordings, folder, enter, tmp_path):
    copy(clips, folder)
    copy(recordings, folder, LONG)
    (folder / "labels.csv").write_text(
        "path,label,start_s,end_s\n" + "".join(f"clip_{n:02}.mp4,,,\n" for n in range(10)) + f"{LONG},fall,1,2\n"
    )
    with labelling(folder) as process:
        page = enter(process)
        extraction = subprocess.Popen(
            [
                *(sys.executable, "-m", "flamest.agent", "extract", "--bundle", "miniworld", "--videos", str(folder)),
                *("--store", str(tmp_path / "features.sqlite"), "--threads", "1"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        try:
            for number in range(10):
                type_class(page, "walk") if number == 0 else press(page, "2" if number % 2 else "1")
                name = f"clip_{number:02}.mp4"  # the second class has its number once the first save is answered
                wait_until(lambda name=name: labels_of(folder)[name] is not None, f"{name} is labelled")
                all_saved(page)
                press(page, "n")
            all_saved(page)
            output, _ = extraction.communicate(timeout=300)
        finally:
            extraction.kill()
        assert extraction.returncode == 0, output
        assert None not in labels_of(folder).values()
        assert [row.segment for row in rows(folder) if row.segment] == [Segment(1_000_000, 2_000_000)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_of_the_page_has_a_serious_finding(scheme, clips, recordings, folder, enter):
    copy(clips, folder, "clip_00.mp4", "clip_01.mp4")
    copy(recordings, folder, LONG)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "labels.csv").write_text(
        f"path,label,start_s,end_s\n{LONG},fall,1,4\n{LONG},sit,3,6\n{LONG},,8,9\nclip_00.mp4,walk,,\nclip_00.mp4,sit,5,2\n"
    )
    with labelling(folder) as process:
        page = enter(process, scheme=scheme, welcome=True)
        assert serious(page) == []  # welcome, a line that cannot be read
        page.get_by_role("button", name="Understood").click()
        for name in ("broken.mp4", "clip_00.mp4", LONG):
            page.get_by_role("option", name=name).click()
            page.wait_for_timeout(500)
            assert serious(page) == [], name
        press(page, "j", "z", "z")
        page.locator("#list-part summary").click()
        page.locator("#labels summary").click()
        page.locator("#problems summary").click()
        assert serious(page) == [], "a segment is selected, everything is unfolded"
        press(page, "t")
        page.keyboard.type("f")
        page.locator("#found").wait_for()
        assert serious(page) == [], "classes that match"
        press(page, "Escape", "Escape", "?")
        page.locator("#help-text[open]").wait_for()
        assert serious(page) == [], "help"
        press(page, "Escape")
        page.set_viewport_size({"width": 400, "height": 800})
        assert serious(page) == [], "narrow"


def test_narrow_and_magnified_pages_scroll_down_alone(clips, folder, enter):
    copy(clips, folder)
    (folder / ("w" * 120 + ".mp4")).write_bytes((folder / "clip_00.mp4").read_bytes())
    with labelling(folder) as process:
        page = enter(process, welcome=True)
        page.get_by_role("option", name="www").click()
        for width in (320, 400, 640, 1000, 1280):  # 640: a window of 1280 at 200 %
            page.set_viewport_size({"width": width, "height": 800})
            wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, f"{width} px wide"
        press(page, "?")
        page.set_viewport_size({"width": 320, "height": 640})
        assert page.evaluate("(d => d.scrollWidth - d.clientWidth)(document.querySelector('#help-text'))") <= 0


def test_every_control_is_reached_and_seen_by_tab(clips, folder, enter):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        reached, outlines = [], set()
        for _ in range(60):
            press(page, "Tab")
            name, outline = page.evaluate(
                "() => (at => [at.id || at.className || at.tagName, getComputedStyle(at).outlineStyle])"
                "(document.activeElement)"
            )
            if name in reached[:1] or name == "BODY":
                break
            reached.append(name)
            outlines.add(outline)
        assert {"help", "filter", "video", "play", "set-start", "playhead", "class-field"} <= {*reached}
        assert outlines <= {"solid", "auto"}
        assert reached.index("filter") < reached.index("play") < reached.index("class-field")


def test_a_hostile_file_name_is_text(clips, folder, enter):
    (folder / HOSTILE).write_bytes((clips / "clip_00.mp4").read_bytes())
    with labelling(folder) as process:
        page = enter(process)
        assert "<img src=x onerror=alert(1)>" in text(page, "#video-title")
        type_class(page, "<b>fall</b>")
        wait_for_text(page, "#target-label", "<b>fall</b>")
        assert page.locator("img, main b:not(#target)").count() == 0
        assert page.problems == []


def test_a_browser_without_the_address_gets_nothing(clips, folder, enter, browser):
    copy(clips, folder)
    with labelling(folder) as process:
        page = enter(process)
        ids = page.evaluate("fetch('api/state').then(a => a.json()).then(s => s.videos.map(v => v.id))")
        stranger = browser.new_context()
        try:
            other = stranger.new_page()
            paths = (
                "",
                "static/label.js",
                "api/state",
                "api/events",
                f"api/video/{ids[0]}",
                f"api/proxy/{ids[0]}",
            )
            for path in paths:
                answer = other.goto(process.page + path)
                assert answer.status == 403, path
                assert "clip_" not in answer.text()
        finally:
            stranger.close()


def test_the_help_lists_every_key(clips, folder, enter):
    copy(clips, folder, "clip_00.mp4")
    with labelling(folder) as process:
        page = enter(process)
        press(page, "?")
        listed = set(page.locator("#help-text kbd").all_inner_texts())
        keys = page.evaluate("import('./static/keys.js').then(k => Object.keys(k.commandsOf({actions: {}})))")
        signs = {" ": "Space", "ArrowLeft": "←", "ArrowRight": "→", "Escape": "Esc", "Delete": "Del", "-": "−"}
        same = {"/", "=", "Backspace", "Ctrl+Z", "Ctrl+y", "Ctrl+z", "Shift+ArrowLeft", "Shift+ArrowRight"}
        assert {signs.get(key, key) for key in keys} - same <= listed
