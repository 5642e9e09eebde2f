"""Install the genuine Python classes of several TensorRT versions for tests without a GPU.

    python tests/tensorrt_rig/install.py build/tensorrt

The ``tensorrt_cu12_bindings`` wheels hold NVIDIA's compiled bindings without the libraries that they
link (1.3 MB instead of gigabytes). ``cc`` makes stubs of these libraries whose functions all
return NULL, so that the classes, enumerations and docstrings are the real ones, and creating a
builder fails as it does on a machine without a driver. The lean runtime is complete: it is small. A stub of
the driver's library (``driver.c``) reports one GPU, so that the code after that question can run.

One folder per version; pip runs only where a folder is not there yet as it is pinned here. What
cannot be had (no wheel for this machine, no compiler, no network) is said and left out, and the
tests that need it are skipped with that reason (``rig.py``).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BINDINGS = {
    "10.3": "10.3.0",  # also of JetPack 6, whose Python 3.10 is too old for this package
    "10.16": "10.16.1.11",  # the last that has precision flags
    "11.4": "11.4.0.106",  # also of JetPack 7.2, which has Python 3.12
}
LEAN = "11.4.0.106"

# Every function that the bindings take from a library, found with `nm -D --undefined-only tensorrt.so`.
FUNCTIONS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}
STAMP, REASON = "installed", "missing"  # files in a version's folder: what is installed; why it is not
PACKAGES, LIBRARIES = "packages", "libraries"  # folders for PYTHONPATH and LD_LIBRARY_PATH
_FORM = "1"  # version of what this file makes; a change makes every folder again


def install(folder: Path) -> dict[str, str]:
    """Make what is not there yet under ``folder``; by version why it could not be made (empty: it is there)."""
    wanted = {name: (f"tensorrt_cu12_bindings=={version}",) for name, version in BINDINGS.items()}
    wanted["lean"] = (f"tensorrt_lean_cu12_bindings=={LEAN}", f"tensorrt_lean_cu12_libs=={LEAN}")
    wanted["driver"] = ()
    return {name: _install_version(folder / name, requirements) for name, requirements in wanted.items()}


def _install_version(target: Path, requirements: tuple[str, ...]) -> str:
    stamp = f"{_FORM} {sys.version_info.major}.{sys.version_info.minor} {' '.join(requirements)}\n"
    if (target / STAMP).is_file() and (target / STAMP).read_text() == stamp:
        return ""
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        if target.name == "driver":
            _compile_driver(building / LIBRARIES)
        else:
            _install_packages(building / PACKAGES, requirements)
            _write_shim(building / PACKAGES, "tensorrt_lean" if target.name == "lean" else "tensorrt")
        if target.name in BINDINGS:
            _compile_libraries(building / LIBRARIES, target.name.partition(".")[0])
        (building / STAMP).write_text(stamp)
        reason = ""
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = f"{' '.join(requirements) or target.name}: {said.strip().splitlines()[-1]}"
        shutil.rmtree(building)
        building.mkdir()
        (building / REASON).write_text(reason)
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
    return reason


def _install_packages(target: Path, requirements: tuple[str, ...]) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "--target", str(target), *requirements]
    subprocess.run(command, check=True, capture_output=True, text=True)


def _write_shim(target: Path, package: str) -> None:
    """Write a package that passes on the names of the bindings, as NVIDIA's package of this name does."""
    (target / package).mkdir()
    lines = (f"from {package}_bindings import *", f"from {package}_bindings import __version__")
    (target / package / "__init__.py").write_text("\n".join(lines) + "\n")


def _compile_libraries(target: Path, major: str) -> None:
    target.mkdir()
    for library, functions in FUNCTIONS.items():
        source = "".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions)
        out = target / f"lib{library}.so.{major}"
        _compile(out, source)


def _compile_driver(target: Path) -> None:
    target.mkdir()
    _compile(target / "libcuda.so.1", Path(__file__).with_name("driver.c").read_text())


def _compile(out: Path, source: str) -> None:
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-o", str(out), "-"]
    subprocess.run(command, input=source, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    for name, problem in install(Path(sys.argv[1])).items():
        if problem:
            print(f"TensorRT {name} for tests: not there, its tests are skipped ({problem})")
