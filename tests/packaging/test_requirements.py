"""Hashed requirements and wheelhouses: what is written, without a network. `make package-test` installs them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules release/requirements.py and release/wheelhouse.py, which are no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT / "release"))
    import requirements
    import wheelhouse

    yield requirements, wheelhouse
    for name in ("requirements", "wheelhouse"):
        sys.modules.pop(name)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "flamest-0.2.0-py3-none-any.whl"
    path.write_bytes(b"a wheel")
    return path


def test_every_role_of_a_release_is_an_extra_with_a_page(scripts):
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "guides" / "install-offline.md").read_text()
    for role in scripts[0].ROLES:
        assert role in extras
        assert f"`requirements-{role}.txt`" in page


def test_the_requirements_pin_the_wheel_beside_them(scripts, wheel, monkeypatch):
    requirements, _ = scripts
    monkeypatch.setattr(requirements, "resolve", lambda role: "numpy==2.4.6 \\\n    --hash=sha256:00\n")
    requirements.write_requirements(wheel.parent, "agent")
    text = (wheel.parent / "requirements-agent.txt").read_text()
    assert f"flamest[agent]==0.2.0 \\\n    --hash=sha256:{hashlib.sha256(b'a wheel').hexdigest()}\n" in text
    assert text.endswith("numpy==2.4.6 \\\n    --hash=sha256:00\n")


def test_without_one_wheel_the_program_ends_with_a_fix(scripts, tmp_path):
    with pytest.raises(SystemExit, match=r"has 0 wheels of flamest, expected one\n  fix: make dist"):
        scripts[0].find_wheel(tmp_path)


def test_a_wheelhouse_lists_its_own_wheels_with_their_hashes(scripts, wheel):
    (wheel.parent / "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl").write_bytes(b"another")
    scripts[1].write_list(wheel.parent, "agent")
    assert (wheel.parent / "requirements.txt").read_text().splitlines() == [
        f"flamest[agent]==0.2.0 --hash=sha256:{hashlib.sha256(b'a wheel').hexdigest()}",
        f"numpy==2.4.6 --hash=sha256:{hashlib.sha256(b'another').hexdigest()}",
    ]
