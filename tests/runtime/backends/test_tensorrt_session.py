"""The TensorRT session on the genuine classes of three versions."""

from pathlib import Path


def test_a_session_asks_tensorrt_for_what_it_has_and_keeps_its_values_on_the_device(tensorrt_rig):
    tensorrt_rig.run_checks(Path(__file__).with_name("checks_tensorrt_session.py"))
