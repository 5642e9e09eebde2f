"""Fixtures: toy bundles and small video files (toys.py and clips.py in this folder)."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load(name):
    """A module of this folder; tests are no package, so there is nothing to import it from."""
    key = f"flamest_tests_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).parent / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


@pytest.fixture(scope="session")
def toys():
    return load("toys")


@pytest.fixture(scope="session")
def clips():
    return load("clips")


@pytest.fixture(scope="session")
def toy_bundle(toys, tmp_path_factory):
    """A bundle that must not be changed."""
    return toys.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")
