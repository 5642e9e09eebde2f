"""The builder on the genuine classes of three TensorRT versions, and how it fails where something is missing."""

from __future__ import annotations

from pathlib import Path

BUILD = """
import sys
from pathlib import Path
from flamest.base.errors import FlamestError
from flamest.runtime.backends.tensorrt.builder import EngineRequest, build_engine
from flamest.runtime.bundle.graph_records import Graph
from flamest.runtime.bundle.graph_records import EngineOptions

graph = Graph("x.onnx", 18, (), (), {}, "fp32", {})
try:
    build_engine(EngineRequest("cnn", Path("x.onnx"), "", graph, EngineOptions()), None)
except FlamestError as error:
    print(error.code, error.exit_code, error.message, error.fix, sep="|")
"""


def test_the_builder_fits_three_versions_of_tensorrt(tensorrt_rig):
    tensorrt_rig.run_checks(Path(__file__).with_name("checks_builder.py"))


def test_no_driver_is_recognised_by_the_builders_message(tensorrt_rig):
    done = tensorrt_rig.python(BUILD)
    code, exit_code, message, fix = done.stdout.strip().split("|")
    assert (code, exit_code) == ("NO_DRIVER_OR_GPU", "78"), done.stderr
    assert "factory function returned nullptr" in message
    assert "nvidia-smi" in fix


def test_missing_libraries_are_named(tensorrt_rig):
    done = tensorrt_rig.python(BUILD, libraries=False)
    code, exit_code, message, fix = done.stdout.strip().split("|")
    assert (code, exit_code) == ("TRT_LIBS", "78"), done.stderr
    assert "libnv" in message
    assert ".so." in message
    assert fix


def test_no_tensorrt_is_an_error_with_the_install_command(tensorrt_rig):
    done = tensorrt_rig.python("import sys; sys.modules['tensorrt'] = None\n" + BUILD)
    assert done.stdout.startswith("TRT_MISSING|78|"), done.stderr
    assert "pip install 'flamest[tensorrt]'" in done.stdout


def test_the_lean_runtime_cannot_build(lean_rig):
    done = lean_rig.python("import sys, tensorrt_lean; sys.modules['tensorrt'] = tensorrt_lean\n" + BUILD)
    assert done.stdout.startswith("TRT_NO_BUILDER|78|"), done.stderr
    assert "11.4.0.106 has no Builder" in done.stdout
