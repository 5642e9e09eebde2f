"""The sdist: everything that is committed, so that documentation and tests come with it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: git knows no files here")
def test_the_sdist_holds_every_committed_file_and_no_other(tmp_path):
    build = "import sys; sys.path.insert(0, 'release'); import backend; print(backend.build_sdist(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    files = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]  # committed, or about to be
    listed = subprocess.run(files, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    committed = set(listed.splitlines())
    made_by_setuptools = {name for name in inside if name.startswith("flamest.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert inside - made_by_setuptools - committed == set()
    assert {name for name in committed - inside if (ROOT / name).exists()} == set()
