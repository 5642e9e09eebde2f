"""The machine is asked without loading what could crash: drivers of C, made for the test, behave and misbehave."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from flamest.base.errors import SettingsError
from flamest.runtime.backends import machine
from flamest.runtime.backends.machine import (
    DriverAnswer,
    Gpu,
    MachineFacts,
    ask_driver,
    gather_facts,
    no_gpu_reason,
    old_driver_reasons,
    on_device,
)

DRIVER = """
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { %s }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_NO_DEVICE"; return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = %d; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int length, int device)
{ strcpy(name, "Made-up GPU"); if (device) strcat(name, " II"); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 6; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 24000000000; return 0; }
int cuDeviceGetUuid_v2(unsigned char *id, int device)
{ for (int i = 0; i < 16; i++) id[i] = 16 * device + i; return 0; }
"""
MANAGEMENT = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *id, void **handle)
{
    /* in another order than the driver's */
    if (!strcmp(id, "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f")) { *handle = (void *)1; return 0; }
    if (!strcmp(id, "MIG-00010203-0405-0607-0809-0a0b0c0d0e0f")) { *handle = (void *)2; return 0; }
    return 6;
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory)
{ memory[0] = 24000000000; memory[1] = (unsigned long long)handle * 1000000000; return 0; }
"""
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def driver(folder, init="return 0;", gpus=1):
    out = folder / "libcuda.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-o", str(out), "-"]
    subprocess.run(command, input=DRIVER % (init, gpus), text=True, check=True)
    return str(out)


@needs_cc
def test_every_gpu_is_listed_with_its_free_memory_in_the_drivers_order(tmp_path, monkeypatch):
    library = driver(tmp_path, gpus=2)
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-o", str(tmp_path / "libnvidia-ml.so.1"), "-"]
    subprocess.run(command, input=MANAGEMENT, text=True, check=True)
    assert [gpu.free_mb for gpu in gather_facts(driver_library=library).gpus] == [None, None]
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    facts = gather_facts(driver_library=library)
    assert [(gpu.name, gpu.free_mb) for gpu in facts.gpus] == [("Made-up GPU", 2000), ("Made-up GPU II", 1000)]
    assert (facts.gpu, facts.device) == (facts.gpus[0], 0)
    second = on_device(facts, 1)
    assert (second.gpu, second.device, second.gpus) == (facts.gpus[1], 1, facts.gpus)
    with pytest.raises(SettingsError, match=r"GPU 2 is not there, the driver lists 0 \(Made-up GPU\), 1") as caught:
        on_device(facts, 2)
    assert "CUDA_VISIBLE_DEVICES" in caught.value.fix


def facts_with(cuda, **majors):
    names = {name.replace("_", "-"): major for name, major in majors.items()}
    versions = dict.fromkeys(names, "1.2.3")
    gpu = Gpu("NVIDIA L4", "8.9", 24_000)
    return MachineFacts(gpu=gpu, cuda=cuda, driver="570.86.15", versions=versions, cuda_majors=names)


@pytest.mark.parametrize(
    ("cuda", "majors", "fix"),
    [
        ("12.8", {"tensorrt": 13}, "pip install 'flamest[tensorrt-cu12]'"),
        ("12.8", {"cuda_bindings": 13}, "pip install 'flamest[tensorrt-cu12]'"),
        ("12.4", {"onnxruntime_gpu": 13}, "pip install 'flamest[agent-gpu-cu12]'"),
        ("11.8", {"tensorrt": 12}, "install driver 525 or newer"),
    ],
)
def test_a_package_for_a_newer_cuda_is_named_with_what_fits(cuda, majors, fix):
    facts = facts_with(cuda, **majors)
    (reason,) = old_driver_reasons(facts, tuple(facts.versions))
    assert reason.code == "DRIVER_TOO_OLD"
    needed = next(iter(majors.values()))
    assert f"1.2.3 is made for CUDA {needed}, which needs driver {machine.OLDEST_DRIVERS[needed]}" in reason.evidence
    assert f"driver 570.86.15 supports CUDA up to {cuda}" in reason.evidence
    assert fix in reason.fix


def test_a_driver_serves_every_version_of_its_major_and_older_ones():
    assert old_driver_reasons(facts_with("12.2", tensorrt=12, cuda_bindings=12), ("tensorrt", "cuda-bindings")) == ()
    assert (
        old_driver_reasons(facts_with("13.0", tensorrt=12, onnxruntime_gpu=13), ("tensorrt", "onnxruntime-gpu")) == ()
    )
    assert old_driver_reasons(MachineFacts(cuda_majors={"tensorrt": 13}), ("tensorrt",)) == ()  # no GPU: said already


@pytest.mark.parametrize(
    ("installed", "majors"),
    [
        ({"tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0"}, {"tensorrt": 13}),
        ({"tensorrt-cu12-libs": "10.3.0", "tensorrt-cu12-bindings": "10.3.0"}, {"tensorrt": 12}),
        ({"tensorrt-cu12": "10.3.0", "tensorrt-cu13": "11.4.0"}, {}),
        ({"onnxruntime-gpu": "1.26.4", "cuda-bindings": "12.9.1"}, {"onnxruntime-gpu": 12, "cuda-bindings": 12}),
        ({"onnxruntime-gpu": "1.31.1", "cuda-bindings": "13.5.0"}, {"onnxruntime-gpu": 13, "cuda-bindings": 13}),
    ],
)
def test_the_cuda_of_a_package_is_read_from_what_is_installed(installed, majors, monkeypatch):
    def version(name):
        if name not in installed:
            raise machine.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(machine.importlib.metadata, "version", version)
    monkeypatch.setattr(machine, "_ask_tensorrt", lambda: machine.TensorRtAnswer("1.2.3", builds=True))
    assert gather_facts(driver_library="libno-such-driver.so").cuda_majors == majors


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
