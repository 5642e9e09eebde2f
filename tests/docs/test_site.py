"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and its paths are links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flamest.docs.tooling import lists

pytest.importorskip("mkdocs", reason="the extra docs is not installed: pip install 'flamest[docs]'")
pytest.importorskip("material", reason="the extra docs is not installed: pip install 'flamest[docs]'")

ROOT = Path(__file__).resolve().parent.parent.parent
HOOK = ROOT / "docs" / "tooling" / "links.py"
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?https?://[^>]*>|url\(["']?https?:"""
)
DECISION = "decision" + " 012"
SMALL_SITE = f"""
site_name: small
use_directory_urls: false
theme: {{name: material, font: false}}
hooks: [{HOOK}]
plugins: []
extra: {{source_url: "https://example.org/source"}}
nav: [{{Home: index.md}}, {{A guide: guides/clips.md}}]
validation: {{nav: {{omitted_files: warn}}, links: {{anchors: warn}}}}
"""


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(site)],
        capture_output=True,
        text=True,
        cwd=config.parent,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture
def small(tmp_path):
    for path, text in {
        "docs/index.md": "# Home\n\nSee docs/guides/clips.md, `docs/guides/clips.md`, agent/client.py,\n"
        "docs/decisions/012-norm-bound.md.\n",
        "docs/guides/clips.md": "# One\n\n`tests/test_rules.py::test_the_package_list_is_the_folders`, docs/GONE.md,\n"
        "[the log](../../CHANGELOG.md)\n\n"
        "    flamest docs/index.md\n\n## Here\n",
        "docs/decisions/012-norm-bound.md": "# 012: a bound\n",
        "agent/client.py": "",
        "tests/test_rules.py": "",
        "CHANGELOG.md": "# Changelog\n\n[One](docs/guides/clips.md#here)\n",
        "mkdocs.yml": SMALL_SITE,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def links(page: Path) -> list[tuple[str, str]]:
    """Return address and text of the links in a page's article."""
    article = page.read_text().partition("<article")[2].partition("</article>")[0]
    found = re.findall(r'<a href="([^"]*)"[^>]*>(.*?)</a>', article)
    return [(address, re.sub("<[^>]+>", "", text)) for address, text in found]


def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").is_file()
    assert (site / "search" / "search_index.json").is_file()


def test_the_site_loads_nothing_from_elsewhere(site):
    wrong = {
        f"{page.relative_to(site)}: {found[0][:100]}"
        for page in site.rglob("*")
        if page.suffix in {".html", ".css"}
        for found in LOADED.finditer(page.read_text())
    }
    assert wrong == set()


def test_no_page_of_the_site_is_empty(site):
    articles = {
        str(page.relative_to(site)): page.read_text().partition("<article")[2].partition("</article>")[0]
        for page in site.rglob("*.html")
        if page.name != "404.html"
    }
    assert [name for name, article in articles.items() if len(re.sub("<[^>]+>", " ", article).split()) < 30] == []


def test_every_decision_and_page_of_the_root_is_on_the_site(site):
    for decision in (ROOT / "docs" / "decisions").glob("[0-9]*.md"):
        assert (site / "decisions" / f"{decision.stem}.html").is_file()
    assert (site / "project" / "changelog.html").is_file()


def test_paths_that_a_page_names_become_links(small):
    built = build(small / "mkdocs.yml", small / "site")
    assert built.returncode == 0, built.stderr
    assert links(small / "site" / "index.html") == [
        ("guides/clips.html", "A guide"),
        ("guides/clips.html", "A guide"),
        ("https://example.org/source/agent/client.py", "agent/client.py"),
        ("decisions/012-norm-bound.html", DECISION),
    ]
    assert links(small / "site" / "guides" / "clips.html") == [
        ("https://example.org/source/tests/test_rules.py", "tests/test_rules.py::test_the_package_list_is_the_folders"),
        ("../project/changelog.html", "the log"),
    ]
    assert links(small / "site" / "project" / "changelog.html") == [("../guides/clips.html#here", "One")]


def test_lists_are_read_as_github_reads_them():
    page = "Why:\n- one,\n  in two lines\n  - inner\n- two\n\n```\nx\n- no list\n```\n"
    assert lists.on_page_markdown(page) == (
        "Why:\n\n- one,\n  in two lines\n    - inner\n- two\n\n```\nx\n- no list\n```\n"
    )


def test_a_link_to_nowhere_or_a_page_without_navigation_fails_the_build(small):
    (small / "docs" / "index.md").write_text("# Home\n\n[a](gone.md) [b](guides/clips.md#gone) [c](../gone.py)\n")
    (small / "docs" / "other.md").write_text("# Other\n")
    built = build(small / "mkdocs.yml", small / "site")
    assert built.returncode != 0
    for found in ("'gone.md'", "'#gone'", "'../gone.py'", "other.md"):
        assert found in built.stderr
