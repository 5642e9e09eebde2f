"""TensorRT's profiler on the genuine classes of three versions."""

from pathlib import Path


def test_the_profiler_fits_three_versions_of_tensorrt(tensorrt_rig):
    tensorrt_rig.run_checks(Path(__file__).with_name("checks_tensorrt_layers.py"))
