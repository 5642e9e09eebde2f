"""The pages of docs/reference that are made from the code: which part of which page is made by what.

A page is written by hand around one generated part between two markers, so that an explanation stays when the part is
made again. ``make reference`` makes all of them; tests/docs/test_reference.py says when one is stale.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import api_page, commands_page, environment_page, error_pages, settings_pages, wire_page

DOCS = Path(__file__).resolve().parent.parent
BEGIN = "<!-- made from the code: `make reference` writes what follows -->"
END = "<!-- end of what is made from the code -->"

PAGES: dict[str, Callable[[], str]] = {
    "reference/agent-settings.md": settings_pages.agent_settings,
    "reference/coordinator-settings.md": settings_pages.coordinator_settings,
    "reference/commands.md": commands_page.commands,
    "reference/exit-codes.md": error_pages.exit_codes,
    "reference/error-codes.md": error_pages.error_codes,
    "reference/environment.md": environment_page.environment,
    "reference/python-api.md": api_page.python_api,
    "reference/wire.md": wire_page.messages,
}


def filled(page: str, docs: Path = DOCS) -> str:
    """Return the text of ``page`` with its generated part made again. Raises ValueError without its markers."""
    text = (docs / page).read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/{page}: expected the lines '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n\n{PAGES[page]().strip()}\n\n{END}{after}"


def stale_pages(docs: Path = DOCS) -> list[str]:
    """Return the pages whose generated part is not what the code says."""
    return [page for page in PAGES if filled(page, docs) != (docs / page).read_text()]


def write_pages(docs: Path = DOCS) -> list[str]:
    """Write the generated part of every page; return the pages that changed."""
    stale = stale_pages(docs)
    for page in stale:
        (docs / page).write_text(filled(page, docs))
    return stale
