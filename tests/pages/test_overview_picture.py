"""The README's picture in a browser: readable in both colour schemes, nothing over anything."""

from __future__ import annotations

import itertools
from pathlib import Path
from xml.etree import ElementTree

import pytest

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "overview.svg"
BOXES = """() => [...document.querySelectorAll("text")].map(text => {
  const box = text.getBoundingClientRect();
  return [text.textContent, box.left, box.top, box.right, box.bottom];
})"""


def test_the_overview_has_words_and_loads_nothing():
    text = PICTURE.read_text()
    root = ElementTree.fromstring(text)
    assert [child.tag.rpartition("}")[2] for child in root[:2]] == ["title", "desc"]
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text.replace("url(#", "")
    assert "<script" not in text
    assert "<image" not in text


@pytest.mark.pages
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_text_of_the_overview_lies_over_another(scheme, open_page):
    page = open_page(PICTURE, width=960, scheme=scheme).page
    boxes = page.evaluate(BOXES)
    assert len(boxes) > 15
    over = [
        (a[0], b[0])
        for a, b in itertools.combinations(boxes, 2)
        if min(a[3], b[3]) - max(a[1], b[1]) > 1 and min(a[4], b[4]) - max(a[2], b[2]) > 3
    ]
    assert over == []
    assert [box[0] for box in boxes if box[1] < 0 or box[3] > 960] == []
