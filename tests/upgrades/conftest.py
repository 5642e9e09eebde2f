"""The state that a release left behind: as committed, and made again by the release itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RELEASED = "0.2.0"
BUILT = ROOT / "build" / "released"


def load(name: str) -> Any:
    """Load a file of this folder; the tests are no package, so it cannot be imported."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def releases() -> Any:
    """The module release.py."""
    return load("release")


@pytest.fixture(scope="session")
def current(releases: Any) -> Any:
    """The code under test."""
    return releases.Release()


@pytest.fixture(scope="session")
def released(request: pytest.FixtureRequest, releases: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The release, from a wheel of its tag; FLAMEST_RELEASED names another commit.

    Without the tag the tests are skipped, but fail where they were asked for by `make upgrades`.
    """
    commit = commit_of(os.environ.get("FLAMEST_RELEASED", f"v{RELEASED}"))
    if not commit:
        missing = f"this clone has no tag v{RELEASED} (git fetch --tags): only the committed state is tried"
        if request.config.getoption("-m") == "soak or not soak":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    site = BUILT / commit
    if not site.exists():
        made = build_site(commit, tmp_path_factory.mktemp("released"))
        BUILT.mkdir(parents=True, exist_ok=True)
        try:
            made.rename(site)
        except OSError:  # on another disk, or another worker was first
            shutil.copytree(made, site, dirs_exist_ok=True)
    return releases.Release(site)


def commit_of(revision: str) -> str:
    words = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def build_site(commit: str, folder: Path) -> Path:
    """Build the wheel of a commit with its own build backend, and unpack it."""
    source = folder / "source"
    source.mkdir()
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x"], cwd=source, input=packed, check=True)
    build = "import sys; sys.path.insert(0, 'release'); import backend; backend.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = folder / "site"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


# To make the state takes the release half a minute: `make upgrades` and `make soak` do, `make test` does not.
@pytest.fixture(scope="session", params=["committed", pytest.param("made by the wheel", marks=pytest.mark.soak)])
def left_behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of the release. Read it only; ``state`` is a copy of one's own."""
    folder = tmp_path_factory.mktemp("left") / "state"
    if request.param == "committed":
        unpack(folder)
    else:
        request.getfixturevalue("released").python(HERE / "make_state.py", folder)
    return folder


@pytest.fixture
def state(left_behind: Path, tmp_path: Path) -> Path:
    shutil.copytree(left_behind, tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    unpack(tmp_path / "state")
    return tmp_path / "state"


def unpack(folder: Path) -> None:
    """Unpack the committed state, with the permissions that keys and states have."""
    with zipfile.ZipFile(HERE / f"state-{RELEASED}.zip") as packed:
        packed.extractall(folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
