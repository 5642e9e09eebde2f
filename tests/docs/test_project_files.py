"""The files that a hosting site reads are valid: CITATION.cff and the issue templates."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import flamest
import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'flamest[docs]'")

ROOT = Path(__file__).resolve().parent.parent.parent
TEMPLATES = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
# Of the Citation File Format 1.2.0: https://github.com/citation-file-format/citation-file-format
CITATION_KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
REFERENCE_STATUS = {"abstract", "advance-online", "in-preparation", "in-press", "preprint", "submitted"}
BODY_TYPES = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_citation_is_valid_and_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation) <= CITATION_KEYS
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["authors"] == [{"name": "The FLAMeST team"}]
    assert str(citation["version"]) == flamest.__version__, "CITATION.cff has another version than __init__.py"
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["status"] in REFERENCE_STATUS


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_is_a_form_that_warns_of_pasted_data(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    identifiers = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(identifiers) == len(set(identifiers)) >= 2
    for part in form["body"]:
        assert part["type"] in BODY_TYPES
        assert part["attributes"].get("label") or part["type"] == "markdown"
    text = path.read_text()
    assert "Never paste data" in text or "No data, names or labels" in text


def test_there_is_a_template_for_a_bug_a_question_and_a_wish():
    assert [path.stem for path in TEMPLATES] == ["bug", "feature", "question"]


def test_contributing_lists_every_target_of_make_and_no_other():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)} == targets


def test_every_page_names_the_python_that_is_required():
    """JetPack 6 has Python 3.10: a page that offers it TensorRT would offer what cannot be installed."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    stated = {
        (page.name, found)
        for page in pages
        for found in re.findall(r"Python\s(\d\.\d+)\sor\snewer", page.read_text())
        if found != required
    }
    assert stated == set()
    guide = (ROOT / "docs" / "guides" / "tensorrt.md").read_text()
    assert f"FLAMeST needs Python {required} or newer" in guide
    assert "JetPack 6 has Python\n3.10, which is too old" in guide
