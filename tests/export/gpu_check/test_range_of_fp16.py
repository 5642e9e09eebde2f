"""gpu-check and an export measure the range of an image encoder in one way."""

from __future__ import annotations

import json
from types import SimpleNamespace

import onnx
import pytest
from flamest.export.gpu_check import overflow
from flamest.export.gpu_check.probes import main
from flamest.export.precision.overflow import FP16_MAX


@pytest.fixture(autouse=True)
def loaded(monkeypatch, tiny_blip):
    monkeypatch.setattr(overflow, "open_blip", lambda source: tiny_blip)


def test_seeded_weights_are_measured_and_said_to_mean_nothing(capsys):
    assert main(["overflow", "--weights", "random:tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["means_something"] is False
    assert 0 < found["largest"] < FP16_MAX
    assert (found["limit"], found["frames"]) == (FP16_MAX, overflow.CLIPS * overflow.FRAMES)
    assert found["value"]


def write_nothing(spec, folder):
    """In place of a graph that nobody measures."""
    onnx.save_model(onnx.ModelProto(), str(folder / "vision.onnx"))
    return SimpleNamespace(file="vision.onnx")


@pytest.mark.parametrize(("largest", "room"), [(1e3, True), (1e4, False), (1e5, False)])
def test_the_export_and_the_check_share_one_measurement(monkeypatch, largest, room):
    monkeypatch.setattr(overflow, "write_graph", write_nothing)
    monkeypatch.setattr(overflow, "largest_magnitude", lambda model, feeds: (largest, "amplified"))
    found = overflow.largest_activation("random:tiny")
    assert (found["largest"], found["value"], found["has_room"]) == (largest, "amplified", room)
