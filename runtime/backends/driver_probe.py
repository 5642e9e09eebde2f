"""Asks the NVIDIA driver what it sees, through ctypes alone. Runs as a script in a child process.

Names and numbers are those of the CUDA driver API
(https://docs.nvidia.com/cuda/cuda-driver-api/). Imports nothing of this package: it starts in 20 ms.
"""

import ctypes
import json
import sys
from typing import Any

CC_MAJOR, CC_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def ask(library: str) -> dict[str, Any]:
    """{"cuda", "gpus": [{name, compute_capability, memory_mb}]}, or {"problem"} with what the driver said.

    ``missing`` stands beside the problem where there is no such library at all.
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
    return {**found, "gpus": [describe(cuda, index) for index in range(count.value)]}


def describe(cuda: Any, index: int) -> dict[str, Any]:
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
    }


def name_of(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(text))
    return f"{(text.value or b'unknown').decode()} ({code})"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(ask(sys.argv[1])))
