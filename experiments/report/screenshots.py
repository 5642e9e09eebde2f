"""Screenshots of a demo's report page for the documentation: ``make screenshots``.

Playwright drives the Chromium of this machine; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import MissingExtra, UsageError
from ...base.files import write_atomic

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_WITHIN_MS = 120_000


@dataclass(frozen=True)
class Screenshot:
    """A part of the page, as seen in a window of that width."""

    name: str
    width: int  # CSS pixels
    height: int
    scheme: str = "light"
    start: str = "header"  # CSS selector of the element at the top
    scale: float = 1.0  # device pixels per CSS pixel


SCREENSHOTS = (
    Screenshot("report-desktop", 1040, 1330),
    Screenshot("report-dark", 1040, 1330, "dark", "section:nth-of-type(3)"),
    Screenshot("report-phone", 360, 1760, start="section:nth-of-type(2)", scale=1.5),
)


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A Playwright browser: the Chromium that is installed. Raises MissingExtra or UsageError without one."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise MissingExtra("playwright", extra="dev") from error
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        raise UsageError("no Chromium is installed", fix="apt install chromium", code="no_chromium")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=START_WITHIN_MS
            )
        except Error as error:
            raise UsageError(
                f"{program} does not start: {error.message.splitlines()[0]}",
                fix=f"{program} --headless --no-sandbox --dump-dom about:blank",
                code="no_chromium",
            ) from error
        try:
            yield browser
        finally:
            browser.close()


def take_screenshots(page: Path, folder: Path) -> list[Path]:
    """Write each of SCREENSHOTS of the HTML file ``page`` as a PNG into ``folder``. Raises FlamestError."""
    written = []
    with open_browser() as browser:
        for shot in SCREENSHOTS:
            path = folder / f"{shot.name}.png"
            write_atomic(path, smaller(_take(browser, page, shot)))
            written.append(path)
    return written


def _take(browser: Any, page: Path, shot: Screenshot) -> bytes:
    context = browser.new_context(
        viewport={"width": shot.width, "height": 900}, color_scheme=shot.scheme, device_scale_factor=shot.scale
    )
    try:
        opened = context.new_page()
        opened.goto(page.resolve().as_uri())
        margin = 24 if shot.start != "header" else 56
        top = max(opened.locator(shot.start).first.bounding_box()["y"] - margin, 0)
        clip = {"x": 0, "y": top, "width": shot.width, "height": shot.height}
        picture: bytes = opened.screenshot(full_page=True, clip=clip)
        return picture
    finally:
        context.close()


def smaller(png: bytes) -> bytes:
    """The picture with 256 colours, spread over all that it has: rare ones stay."""
    from PIL import Image

    out = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(out, "PNG", optimize=True)
    return out.getvalue()


def main(arguments: Sequence[str]) -> None:
    """``PAGE FOLDER``: screenshots of PAGE, written into FOLDER."""
    page, folder = map(Path, arguments)
    take_screenshots(page, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
