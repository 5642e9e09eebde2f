"""Rules of the pages: a title, a first sentence that says what the page is for, decisions that fit on a screen."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
MOST_LINES = 40  # of a decision


def prose(text: str) -> list[str]:
    """Return the lines of a page without its blocks of code."""
    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("    ", "```")):
            lines.append(line)
    return lines


def first_line(page: str) -> str:
    return next(line for line in (DOCS / page).read_text().splitlines()[1:] if line.strip())


def test_every_page_has_one_title():
    titles = {page: [line for line in prose((DOCS / page).read_text()) if line.startswith("# ")] for page in PAGES}
    assert [page for page, found in titles.items() if len(found) != 1] == []


def test_every_page_opens_with_a_sentence():
    opening = {page: first_line(page) for page in PAGES if not page.startswith("decisions/")}
    assert {page: line for page, line in opening.items() if line.startswith(("    ", "```", "|", "#", "- ", "<"))} == {}


def test_every_decision_has_at_most_forty_lines():
    lines = {page: len((DOCS / page).read_text().splitlines()) for page in PAGES if page.startswith("decisions/")}
    assert {page: number for page, number in lines.items() if number > MOST_LINES} == {}
