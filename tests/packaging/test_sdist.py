"""The sdist: everything that is committed, so that documentation and tests come with it."""

from __future__ import annotations

import subprocess
import sys
import tarfile


def test_the_sdist_holds_every_committed_file_and_no_other(source_copy, tmp_path):
    committed = {str(path.relative_to(source_copy)) for path in source_copy.rglob("*") if path.is_file()}
    build = "import sys; sys.path.insert(0, 'release'); import backend; print(backend.build_sdist(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source_copy, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made_by_setuptools = {name for name in inside if name.startswith("flamest.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert inside - made_by_setuptools - committed == set()
    assert committed - inside == set()
