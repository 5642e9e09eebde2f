"""The machine is asked without loading what could crash: drivers of C, made for the test, behave and misbehave."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from flamest.runtime.backends.machine import DriverAnswer, MachineFacts, ask_driver, gather_facts, no_gpu_reason

DRIVER = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { %s }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_NO_DEVICE"; return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = %d; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strcpy(name, "Made-up GPU"); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 6; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 24000000000; return 0; }
"""
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def driver(folder, init="return 0;", gpus=1):
    out = folder / "libcuda.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-o", str(out), "-"]
    subprocess.run(command, input=DRIVER % (init, gpus), text=True, check=True)
    return str(out)


@needs_cc
def test_a_driver_reports_its_gpus(tmp_path):
    facts = gather_facts(driver_library=driver(tmp_path, gpus=2))
    assert (facts.gpu.name, facts.gpu.compute_capability, facts.gpu.memory_mb) == ("Made-up GPU", "8.6", 24_000)
    assert (facts.cuda, facts.driver_problem) == ("12.8", "")


@needs_cc
@pytest.mark.parametrize(
    ("init", "gpus", "evidence"),
    [
        ("return 100;", 1, "cuInit: CUDA_ERROR_NO_DEVICE (100)"),
        ("return 0;", 0, "sees no GPU"),
        ("abort();", 1, "signal SIGABRT"),
        ("*(volatile int *)0 = 1; return 0;", 1, "signal SIGSEGV"),
    ],
)
def test_a_driver_that_fails_or_crashes_is_a_fact(tmp_path, init, gpus, evidence):
    facts = gather_facts(driver_library=driver(tmp_path, init, gpus))
    assert facts.gpu is None
    assert evidence in facts.driver_problem


def test_no_driver_differs_from_one_that_does_not_load(tmp_path):
    missing = gather_facts(driver_library="libno-such-driver.so")
    assert missing.driver_problem == "no NVIDIA driver is installed (libno-such-driver.so not found)"
    assert no_gpu_reason(missing).fix.startswith("install the NVIDIA driver")
    (broken := tmp_path / "libcuda.so").write_bytes(b"no library")
    assert ask_driver(str(broken)) == DriverAnswer(problem=f"{broken}: file too short")
    assert no_gpu_reason(MachineFacts(driver_problem="no device")).fix.startswith("nvidia-smi")


def test_what_is_installed_is_known_without_importing_it():
    import sys

    before = set(sys.modules)
    facts = gather_facts(driver_library="libno-such-driver.so")
    assert facts.versions["onnxruntime"]
    assert not {"tensorrt", "openvino", "cuda"} & (set(sys.modules) - before)


def test_a_tensorrt_without_its_libraries_is_a_problem_with_their_name(tmp_path, monkeypatch):
    package = tmp_path / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    facts = gather_facts(driver_library="libno-such-driver.so")
    assert "libnvinfer.so.10" in facts.tensorrt_problem
    (package / "__init__.py").write_text("__version__ = '10.3.0'\nclass Builder: pass")
    facts = gather_facts(driver_library="libno-such-driver.so")
    assert (facts.versions["tensorrt"], facts.tensorrt_problem, facts.tensorrt_builds) == ("10.3.0", "", True)
    (package / "__init__.py").write_text("import os; os.kill(os.getpid(), 11)")
    assert "SIGSEGV" in gather_facts(driver_library="libno-such-driver.so").tensorrt_problem
