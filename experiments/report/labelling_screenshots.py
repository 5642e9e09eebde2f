"""Screenshots of the page of ``flamest-agent label`` for the documentation: ``make screenshots``.

The page is the real one, on clips and a recording of the mini-world.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import DataError
from ...base.files import write_atomic
from ...runtime.clip_records import seconds_text
from ..miniworld.specs import MOTIONS, OBJECTS
from ..miniworld.videos import ClipKey, render_clips, render_recording
from ..processes import command_line
from .screenshots import open_browser, smaller

SEED = 0
CLIP_SCENE, RECORDED_SCENE = 1, 6
RECORDING = "corridor-camera-2.mp4"
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/[\w-]+/enter\?token=\S+")


@dataclass(frozen=True)
class LabellingScreenshot:
    """The page in a window of that size, after these keys."""

    name: str
    width: int  # CSS pixels
    height: int
    scheme: str = "light"
    keys: tuple[str, ...] = ()
    whole_page: bool = False


AT_A_SEGMENT = ("j", "j", "j", "ArrowRight")
LABELLING_SCREENSHOTS = (
    LabellingScreenshot("labelling-desktop", 1280, 860, keys=AT_A_SEGMENT),
    LabellingScreenshot("labelling-dark", 1280, 860, "dark", ("n", "n", "t", "r")),
    LabellingScreenshot("labelling-narrow", 400, 800, keys=AT_A_SEGMENT, whole_page=True),
)


def take_labelling_screenshots(folder: Path) -> list[Path]:
    """Write each of LABELLING_SCREENSHOTS as a PNG into ``folder``. Raises FlamestError."""
    written = []
    with tempfile.TemporaryDirectory() as temporary, open_browser() as browser:
        videos = Path(temporary, "videos")
        _make_videos(videos)
        with _page_address(videos) as address:
            context = browser.new_context()
            context.new_page().goto(address)
            context.pages[0].wait_for_selector("#main:not([aria-busy])")
            state = context.storage_state()
            context.close()
            for shot in LABELLING_SCREENSHOTS:
                path = folder / f"{shot.name}.png"
                write_atomic(path, smaller(_take(browser, state, address.partition("enter?")[0], shot)))
                written.append(path)
    return written


def _make_videos(folder: Path) -> None:
    """Write ten clips, six of them with labels, and a recording with four segments."""
    keys = [ClipKey(SEED, CLIP_SCENE, kind, motion, 0) for kind in OBJECTS[:5] for motion in MOTIONS[:2]]
    for key in keys:
        (folder / key.label).mkdir(parents=True)
    rows = ["path,label,start_s,end_s"]
    for number, key in enumerate(render_clips(keys, folder, processes=1), start=1):
        path = folder / f"ward-3-{number:02}.mp4"
        (folder / key.path).rename(path)
        (folder / key.label).rmdir()
        rows.append(f"{path.name},{key.label if number <= 6 else ''},,")
    recorded = [ClipKey(SEED, RECORDED_SCENE, OBJECTS[n % 3], MOTIONS[n % 2], n) for n in range(8)]
    for label, part in render_recording(folder / RECORDING, recorded)[::2]:
        rows.append(f"{RECORDING},{label},{seconds_text(part.start_us)},{seconds_text(part.end_us)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


@contextlib.contextmanager
def _page_address(videos: Path) -> Iterator[str]:
    """Run ``flamest-agent label`` on ``videos``; yields its one-time address. Raises DataError without one."""
    line = command_line("agent", ["label", "--videos", videos.name, "--no-browser"])
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=videos.parent)
    try:
        assert process.stdout is not None
        found = next((match for text in process.stdout if (match := ADDRESS.search(text))), None)
        if found is None:
            raise DataError("flamest-agent label showed no address", fix="run it by hand and see what it prints")
        yield found[0]
    finally:
        process.terminate()
        process.communicate()


def _take(browser: Any, state: Any, origin: str, shot: LabellingScreenshot) -> bytes:
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme, storage_state=state
    )
    try:
        context.add_init_script("localStorage.setItem('flamest-label-seen-help', '1')")
        page = context.new_page()
        page.goto(origin)
        page.wait_for_selector("#main:not([aria-busy])")
        for key in shot.keys:
            page.wait_for_function("() => document.querySelector('#video').readyState >= 2")
            page.keyboard.press(key)
            page.wait_for_timeout(500)
        picture: bytes = page.screenshot(full_page=shot.whole_page)
        return picture
    finally:
        context.close()


def main(arguments: Sequence[str]) -> None:
    """``FOLDER``: screenshots written into FOLDER."""
    take_labelling_screenshots(Path(*arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
