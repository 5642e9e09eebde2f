"""The TensorRT session on the genuine classes of three versions."""

from pathlib import Path


def test_a_session_fits_three_versions_of_tensorrt(tensorrt_rig):
    tensorrt_rig.run_checks(Path(__file__).with_name("checks_runner.py"))


def test_an_extraction_on_engines_equals_that_on_the_cpu(one_rig, tiny_bundle, monkeypatch):
    monkeypatch.setenv("FLAMEST_TEST_BUNDLE", str(tiny_bundle))
    one_rig.run_checks(Path(__file__).with_name("checks_extraction.py"))
