"""Fixtures: toy bundles and small video files, made by tests/runtime/toys.py and clips.py."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load_from_runtime(name):
    """A module of tests/runtime; tests are no package, so there is nothing to import it from."""
    key = f"flamest_tests_{name}"
    if key not in sys.modules:
        path = Path(__file__).parent.parent / "runtime" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(key, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


@pytest.fixture(scope="session")
def toys():
    return load_from_runtime("toys")


@pytest.fixture(scope="session")
def clips():
    return load_from_runtime("clips")


@pytest.fixture(scope="session")
def toy_bundle(toys, tmp_path_factory):
    """A bundle that must not be changed."""
    return toys.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")
