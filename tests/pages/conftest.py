"""Report pages in an installed Chromium, without network: what a reader would see."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flamest.base.errors import FlamestError
from flamest.experiments.report.screenshots import open_browser

# Visible pieces of text as boxes [text, left, top, right, bottom]; those in a box that scrolls are left out where
# they are scrolled out of sight.
TEXTS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.data.trim() || !node.parentElement.checkVisibility() || node.parentElement.closest("svg")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const scrolling = node.parentElement.closest(".scroll");
    const view = scrolling ? scrolling.getBoundingClientRect() : null;
    for (const box of range.getClientRects()) {
      if (!box.width || (view && (box.left < view.left || box.right > view.right))) continue;
      found.push([node.data.trim(), box.left, box.top + scrollY, box.right, box.bottom + scrollY]);
    }
  }
  return found;
}"""
# Texts that stick out of the box that they belong to, sideways.
ESCAPED = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.data.trim() || !node.parentElement.checkVisibility()) continue;
    const around = node.parentElement.closest("td, th, dl, pre, figure, .bar, .plot, .ends, section, header");
    if (!around || around.matches(".plot, .ends")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = around.getBoundingClientRect();
    for (const text of range.getClientRects()) {
      if (text.right > box.right + 1 || text.left < box.left - 1) found.push(node.data.trim());
    }
  }
  return found;
}"""
# The contrast of every piece of text with what is behind it, as [contrast, text]. A canvas turns any colour into RGBA.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const level = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || element.closest("svg") || !element.checkVisibility()) continue;
    const [a, b] = [level(rgba(getComputedStyle(element).color)), level(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), element.textContent.slice(0, 40)]);
  }
  return found;
}"""


@dataclass(frozen=True)
class OpenedPage:
    """A page in the browser, and what is wrong with how it looks."""

    page: Any  # Playwright's

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than its window."""
        wider: int = self.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        return wider

    def overlapping(self) -> list[tuple[str, str]]:
        """Pairs of texts whose boxes share more than a pixel across and three down (the boxes of lines may touch)."""
        texts = sorted(self.page.evaluate(TEXTS), key=lambda text: text[2])
        found = []
        for place, (first, left, top, right, bottom) in enumerate(texts):
            for second, left2, top2, right2, bottom2 in itertools.islice(texts, place + 1, None):
                if top2 >= bottom - 3:
                    break
                if min(right, right2) - max(left, left2) > 1 and min(bottom, bottom2) - max(top, top2) > 3:
                    found.append((first, second))
        return found

    def escaped(self) -> list[str]:
        """Texts that stick out of their cell, list or section, sideways."""
        texts: list[str] = self.page.evaluate(ESCAPED)
        return texts

    def contrasts(self) -> list[tuple[float, str]]:
        """Contrast of each text with what is behind it, 1 to 21, and the text."""
        return [(contrast, text) for contrast, text in self.page.evaluate(CONTRASTS)]


# Of one file only: while Playwright runs it occupies the thread's event loop, which other tests need.
@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A browser; without one the tests are skipped, but fail where they were asked for by `-m pages`."""
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_browser())
        except FlamestError as error:
            if request.config.getoption("-m") == "pages":
                pytest.fail(f"{error}; {error.fix}", pytrace=False)
            pytest.skip(f"{error}")
        yield opened


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., OpenedPage]]:
    """``open_page(path, width=…, scheme=…)``: the page at that size; a request to elsewhere fails the test."""
    with contextlib.ExitStack() as stack:
        asked: list[str] = []

        def opened(path: Path, *, width: int = 1100, scheme: str = "light", scripts: bool = True) -> OpenedPage:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
            )
            stack.callback(context.close)
            page = context.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.as_uri())
            return OpenedPage(page)

        yield opened
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
