"""An engine is opened for the first time in a child: whatever it does there, this process continues and reports it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flamest.base.errors import FlamestError
from flamest.base.files import sha256_bytes
from flamest.runtime.backends.tensorrt.engine import EngineFile
from flamest.runtime.backends.tensorrt.proof import OnnxFile, Proof
from flamest.runtime.backends.tensorrt.trial import try_engine
from flamest.runtime.bundle.graph_records import EngineOptions, Graph

PLAN = b"native code"
PROOF = Proof("cnn", OnnxFile("cnn.onnx", "", Graph("cnn.onnx", 18, (), (), {}, "fp32", {})), EngineOptions())
RUNTIME = """
import os, time
__version__ = "10.16.1"
class ILogger:
    def __init__(self): pass
class Runtime:
    def __init__(self, logger): self.logger = logger
    def deserialize_cuda_engine(self, plan):
        {does}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "cnn.plan").write_bytes(PLAN)
    return EngineFile("cnn", tmp_path / "cnn.plan", sha256_bytes(PLAN))


def tensorrt_that(does, folder, monkeypatch):
    """A package ``tensorrt`` that children find, and this process never imports."""
    package = folder / "packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(RUNTIME.format(does=does))
    monkeypatch.syspath_prepend(package.parent)


def refused(file, **options):
    with pytest.raises(FlamestError) as caught:
        try_engine(file, PROOF, **options)
    return caught.value


@pytest.mark.parametrize(
    ("does", "evidence"),
    [
        ("os.write(2, b'last words'); os.kill(os.getpid(), 11)", "signal SIGSEGV: last words"),
        ("os.abort()", "signal SIGABRT"),
        ("os._exit(3)", "status 3"),
        ("os._exit(0)", "no answer"),
        ("return None", "TensorRT returned no engine"),
        ("raise RuntimeError('bad magic')", "RuntimeError: bad magic"),
    ],
)
def test_an_engine_that_crashes_is_rejected_with_evidence(does, evidence, file, tmp_path, monkeypatch):
    tensorrt_that(does, tmp_path, monkeypatch)
    error = refused(file)
    assert (error.code, error.exit_code) == ("PLAN_REJECTED", 65)
    assert evidence in error.message
    assert "cnn.plan" in error.message
    assert error.fix.startswith("flamest-export engines DIR --again")


def test_an_engine_that_hangs_is_rejected(file, tmp_path, monkeypatch):
    tensorrt_that("time.sleep(60)", tmp_path, monkeypatch)
    error = refused(file, timeout_s=5.0)
    assert error.code == "PLAN_REJECTED"
    assert "no answer within 5 s" in error.message


def test_the_childs_error_keeps_its_code(file, tmp_path, monkeypatch):
    tensorrt_that("os.abort()", tmp_path, monkeypatch)
    file.path.write_bytes(b"another engine")  # hashes are checked before TensorRT is used
    error = refused(file)
    assert (error.code, error.exit_code) == ("UNTRUSTED", 65)


def test_no_tensorrt_in_the_child_has_its_code(file, tmp_path, monkeypatch):
    package = tmp_path / "packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorrt'\", name='tensorrt')")
    monkeypatch.syspath_prepend(package.parent)
    assert refused(file).code == "TRT_MISSING"


def test_the_lean_runtime_without_a_driver_ends_only_the_child(lean_rig, file):
    """Its Runtime constructs without a driver, and deserialising is a segmentation fault."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a driver")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from flamest.base.errors import FlamestError\n"
        "from flamest.runtime.backends.tensorrt.engine import EngineFile\n"
        "from flamest.runtime.backends.tensorrt.proof import OnnxFile, Proof\n"
        "from flamest.runtime.backends.tensorrt.trial import try_engine\n"
        "from flamest.runtime.bundle.graph_records import EngineOptions, Graph\n"
        "onnx = OnnxFile('cnn.onnx', '', Graph('cnn.onnx', 18, (), (), {}, 'fp32', {}))\n"
        "proof = Proof('cnn', onnx, EngineOptions())\n"
        "try: try_engine(EngineFile('cnn', Path(sys.argv[1]), sys.argv[2]), proof)\n"
        "except FlamestError as error: print(error.code, error.message)\n"
    )
    alias = file.path.parent / "tensorrt"
    alias.mkdir()
    (alias / "__init__.py").write_text("from tensorrt_lean import *\nfrom tensorrt_lean import __version__\n")
    folder = lean_rig.environment()["PYTHONPATH"]
    paths = os.pathsep.join([str(alias.parent), folder])
    done = lean_rig.python(code, file.path, file.sha256, extra={"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PLAN_REJECTED"), done.stdout + done.stderr
    assert "signal SIGSEGV" in done.stdout
