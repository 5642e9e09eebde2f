"""The rig itself: each version is the one that was pinned, and its stand-ins are strict."""

from __future__ import annotations

import ctypes
import importlib.util
import signal
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pinned():
    spec = importlib.util.spec_from_file_location("flamest_tests_tensorrt_install", HERE / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {**module.BINDINGS, "lean": module.LEAN}


def test_a_child_sees_the_pinned_version(tensorrt_rig):
    done = tensorrt_rig.python("import tensorrt; print(tensorrt.__version__)")
    assert done.stdout.strip() == pinned()[tensorrt_rig.version], done.stderr


def test_without_libraries_the_import_fails_as_for_users(tensorrt_rig):
    done = tensorrt_rig.python("import tensorrt", libraries=False)
    assert done.returncode == 1
    assert "ImportError: libnv" in done.stderr


def test_the_stand_ins_are_strict(tensorrt_rig):
    tensorrt_rig.run_checks(HERE / "checks_fakes.py")


@pytest.fixture
def no_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    pytest.skip("this machine has a driver")


CONSTRUCT = "import os, tensorrt_lean as t\nruntime = t.Runtime(t.Logger())\nprint(t.__version__, flush=True)\n"


def test_the_lean_runtime_constructs_without_a_driver(lean_rig, no_driver):
    done = lean_rig.python(CONSTRUCT + "os._exit(0)")
    assert done.returncode == 0, done.stderr
    assert pinned()["lean"] in done.stdout
    assert "CUDA initialization failure" in done.stdout


@pytest.mark.parametrize("then", ["runtime.deserialize_cuda_engine(b'no plan')\nos._exit(0)", "del runtime"])
def test_the_lean_runtime_without_a_driver_crashes_its_process(lean_rig, no_driver, then):
    # The reason why the driver is asked first and an engine is opened for the first time in a child process.
    assert lean_rig.python(CONSTRUCT + then).returncode == -signal.SIGSEGV
