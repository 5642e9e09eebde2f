"""Hook of mkdocs: the repository's own pages join the site, and paths that a page names become links.

Pages name each other as they do in a terminal, by their path from the repository's root (``docs/guides/privacy.md``).
On the site such a path is a link that bears the page's title; the path of another file is a link to the source when
``extra.source_url`` in mkdocs.yml has an address, and stays as it is otherwise. The pages in the repository's root and
the decisions are added to the navigation here, so that a new decision needs no entry in mkdocs.yml.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT_PAGES = {  # a page in the root of the repository: its title, its place on the site
    "ARCHITECTURE.md": ("Architecture", "project/architecture.md"),
    "CONTRIBUTING.md": ("Contributing", "project/contributing.md"),
    "SECURITY.md": ("Security", "project/security.md"),
    "CHANGELOG.md": ("Changelog", "project/changelog.md"),
}
DECISIONS = "decisions/index.md"
ALIASES = {"README.md": "index.md", "docs/decisions/": DECISIONS, "docs/": "index.md"}

_FOLDERS = (
    "docs", "base", "export", "runtime", "fedproto", "agent", "coordinator", "experiments", "api", "examples", "bench",
    "tests", "release",
)  # fmt: skip
PATH = re.compile(
    rf"(?<![\w/.*{{}}-])((?:{'|'.join(_FOLDERS)})/[\w./-]*[\w/]|(?:{'|'.join(ROOT_PAGES)}|README\.md))(::\w+)?(?![\w/-])"
)
_MARKDOWN_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]*)\]\((?P<target>(?![a-z]+:|#)[^)\s]+)\)")
_CODE = re.compile(r"<code>([^<]*)</code>")
_TAG = re.compile(r"(<[^>]+>)")
_KEPT = re.compile(r"<(/?)(a|pre|code|h[1-6]|script|style)\b")  # no links are made inside these


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the decisions and the root's pages to the navigation."""
    docs = Path(config.docs_dir)
    decisions = [{decision_title(path): f"decisions/{path.name}"} for path in _decisions(docs)]
    project = [{title: place} for name, (title, place) in ROOT_PAGES.items() if (docs.parent / name).is_file()]
    config.nav = [*(config.nav or []), {"Decisions": [DECISIONS, *decisions]}, {"Project": project}]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the root's pages and the list of decisions to the site's files."""
    docs = Path(config.docs_dir)
    for name, (_, place) in ROOT_PAGES.items():
        if (docs.parent / name).is_file():
            files.append(File.generated(config, place, content=(docs.parent / name).read_text()))
    if files.get_file_from_path(DECISIONS) is None:
        rows = [f"- [{decision_title(path)}]({path.name})" for path in _decisions(docs)]
        text = "# Decisions\n\nChoices that someone could question, each with its reasons on one page.\n\n"
        files.append(File.generated(config, DECISIONS, content=text + "\n".join(rows) + "\n"))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files outside docs/, and those of the root's pages, to their place on the site."""
    root = Path(config.docs_dir).parent
    source = source_path(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target, _, anchor = found["target"].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (root / path).exists():
            return found[0]  # mkdocs reports it
        place = site_path(path + "/" * (root / path).is_dir(), files)
        if place is not None:
            near = posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")
            return f"[{found['text']}]({near}{'#' * bool(anchor)}{anchor})"
        address = source_address(path, config)
        return f"[{found['text']}]({address})" if address else found["text"]

    return _MARKDOWN_LINK.sub(moved, markdown)


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the paths that the page names into links."""
    root = Path(config.docs_dir).parent

    def linked(found: re.Match[str], *, code: bool) -> str:
        path, test = found[1], found[2] or ""
        shown = f"<code>{path}{test}</code>" if code else f"{path}{test}"
        place = site_path(path, files)
        if place == page.file.src_uri or not (root / path).exists():
            return shown
        if place is not None:
            target = files.get_file_from_path(place)
            assert target is not None
            title = str(target.page.title if target.page else path)
            number = re.match(r"decisions/(\d+)-", place)
            text = html.escape(f"decision {number[1]}" if number else title, quote=False)
            return f'<a href="{get_relative_url(target.url, page.url)}" title="{html.escape(title)}">{text}</a>'
        address = source_address(path, config)
        return f'<a href="{address}">{shown}</a>' if address else shown

    def in_code(found: re.Match[str]) -> str:
        path = PATH.fullmatch(found[1])
        return linked(path, code=True) if path else found[0]

    parts, depth = [], 0
    for part in _TAG.split(_outside_links(content, in_code)):
        if part.startswith("<"):
            if kept := _KEPT.match(part):
                depth += -1 if kept[1] else 1
        elif depth == 0:
            part = PATH.sub(lambda found: linked(found, code=False), part)
        parts.append(part)
    return "".join(parts)


def site_path(path: str, files: Files) -> str | None:
    """Return the place on the site of the repository's file ``path``; None when it is not on the site."""
    if path in ROOT_PAGES:
        place = ROOT_PAGES[path][1]
    else:
        place = ALIASES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
    found = files.get_file_from_path(place) if place else None
    return place if found is not None and (found.is_documentation_page() or found.is_media_file()) else None


def source_path(place: str) -> str:
    """Return the repository's path of the page at ``place`` on the site."""
    moved = {there: name for name, (_, there) in ROOT_PAGES.items()}
    return moved.get(place) or f"docs/{place}"


def source_address(path: str, config: MkDocsConfig) -> str:
    """Return the address of a source file; empty when mkdocs.yml has no ``extra.source_url``."""
    base: Any = config.extra.get("source_url")
    return f"{base}/{path}" if base else ""


def decision_title(path: Path) -> str:
    """Return "012: the largest update that is accepted" from the first line of a decision."""
    return path.read_text().partition("\n")[0].removeprefix("# ")


def _decisions(docs: Path) -> list[Path]:
    return sorted((docs / "decisions").glob("[0-9]*.md"))


def _outside_links(content: str, replace: Any) -> str:
    """Apply ``replace`` to every inline code that is not inside a link, a heading or a block of code."""
    parts = re.split(r"(<a\b.*?</a>|<pre\b.*?</pre>|<h[1-6]\b.*?</h[1-6]>)", content, flags=re.DOTALL)
    return "".join(part if number % 2 else _CODE.sub(replace, part) for number, part in enumerate(parts))
