"""Ask the NVIDIA driver, or TensorRT's package, what it is. A script that machine.py runs in a child process.

    machine_probe.py FD driver LIBRARY     the driver through ctypes, by the CUDA driver API
                                           (https://docs.nvidia.com/cuda/cuda-driver-api/)
    machine_probe.py FD tensorrt           import the package: its libraries may be missing, and are gigabytes

It imports nothing of this package, so that asking the driver takes 20 ms, and writes its one answer, a JSON object,
in the form of base/child_process.py.
"""

import ctypes
import json
import os
import struct
import sys
from typing import Any

CC_MAJOR, CC_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def ask_driver(library: str) -> dict[str, Any]:
    """Return {"cuda", "gpus": [records of ``describe``]}, or {"problem"} with the driver's words.

    ``missing`` is true where there is no such library at all.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        if str(error).startswith(f"{library}: cannot open shared object file: No such file"):
            return {"missing": True, "problem": f"no NVIDIA driver is installed ({library} not found)"}
        return {"problem": str(error)}
    if code := cuda.cuInit(0):
        return {"problem": f"cuInit: {name_of(cuda, code)}"}
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    number = version.value
    found = {"cuda": f"{number // 1000}.{number % 1000 // 10}", "gpus": []}
    if code := cuda.cuDeviceGetCount(ctypes.byref(count)):
        return {**found, "problem": f"cuDeviceGetCount: {name_of(cuda, code)}"}
    management = open_management()
    return {**found, "gpus": [describe(cuda, management, index) for index in range(count.value)]}


def describe(cuda: Any, management: Any, index: int) -> dict[str, Any]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), CC_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), CC_MINOR, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": f"{major.value}.{minor.value}",
        "memory_mb": memory.value // 1_000_000,
        "free_mb": free_memory(cuda, management, device),
    }


def open_management() -> Any:
    """NVML, the driver's management library, which tells free memory without taking some; None where it is missing."""
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
        return None if management.nvmlInit_v2() else management
    except (OSError, AttributeError):
        return None


def free_memory(cuda: Any, management: Any, device: Any) -> int | None:
    """Megabytes; None where they cannot be asked for. NVML numbers GPUs in another order: the identifier names one."""
    raw = (ctypes.c_ubyte * 16)()
    try:
        identify = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
        if management is None or identify(raw, device):
            return None
        digits = bytes(raw).hex()
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used
        for kind in ("GPU", "MIG"):
            name = "-".join((kind, *parts)).encode()
            if not management.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
                failed = management.nvmlDeviceGetMemoryInfo(handle, memory)
                return None if failed else int(memory[1]) // 1_000_000
    except AttributeError:
        pass
    return None


def name_of(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(text))
    return f"{(text.value or b'unknown').decode()} ({code})"


def ask_tensorrt() -> dict[str, Any]:
    """Return {"version", "builds"}, or {"problem"} with the import's words; ``missing`` where it is not installed."""
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        return {"missing": (error.name or "").partition(".")[0] == "tensorrt", "problem": str(error)}
    except Exception as error:  # its packages load libraries in several ways
        return {"problem": f"{type(error).__name__}: {error}"}
    return {"version": tensorrt.__version__, "builds": hasattr(tensorrt, "Builder")}


def main() -> None:
    body = json.dumps(ask_driver(sys.argv[3]) if sys.argv[2] == "driver" else ask_tensorrt()).encode()
    os.write(int(sys.argv[1]), struct.pack("<IQ", len(body), 0) + body)
    os._exit(0)  # libraries of CUDA were seen to crash while they are unloaded


if __name__ == "__main__":
    main()
