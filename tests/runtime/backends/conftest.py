"""The CUDA runtime of Python (tensorrt/fake_cuda.py): tests are no package, so there is nothing to import it from."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fake_cuda():
    path = Path(__file__).parent / "tensorrt" / "fake_cuda.py"
    spec = importlib.util.spec_from_file_location("flamest_tests_fake_cuda", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
