"""The Makefile: every target in its help, and every file that a target names in place."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


PHONY = MAKEFILE.partition(".PHONY: ")[2].partition("\n\n")[0].replace("\\\n", " ").split()


def test_every_target_is_listed_with_what_it_does():
    described = re.findall(r"^([a-z-]+):.*?## \S", MAKEFILE, re.MULTILINE)
    assert sorted(described) == sorted(PHONY)


def test_contributing_says_what_every_target_does():
    rows = re.findall(r"^\| (`.*?) \| ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"`([a-z-]+)`", " ".join(rows))) == sorted(PHONY)


def test_files_that_run_first_exist():
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    names = re.findall(r'"(\S+\.py)"', conftest.partition("LONG_FILES = (")[2].partition("\n)")[0])
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_test_that_make_flower_leaves_out_exists():
    suite = MAKEFILE.partition("FLOWER_SUITE := ")[2].partition("\n#")[0]
    left_out = re.findall(r"\S*test_\w+\.py", suite)
    assert len(left_out) == 6
    assert [name for name in left_out if not list((ROOT / "tests" / "agent").rglob(name.split("/")[-1]))] == []
