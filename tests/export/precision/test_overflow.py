"""fp16 in image encoders is decided by a measurement, and a default precision that fails by fp32."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.export.part_export import ExportContext
from flamest.export.precision.calibration import CHAIN_SEED, seeded_clips
from flamest.export.precision.choice import PrecisionChoice
from flamest.export.precision.lowering import Lowering, measure_fp16
from flamest.export.precision.overflow import FP16_MAX, ROOM, fits_fp16, largest_magnitude, magnitude_note
from onnx import TensorProto, helper, numpy_helper

from .conftest import LOUD, WIDTH, outlier_model, rows


def test_the_largest_value_inside_a_graph_is_found():
    feeds = rows(0, 3)
    largest, name = largest_magnitude(outlier_model(), feeds, threads=1)
    assert name == "amplified"
    assert 0.5 * LOUD < largest <= LOUD
    feeds.append({"x": np.full((1, WIDTH), np.inf, np.float32)})
    assert not np.isfinite(largest_magnitude(outlier_model(), feeds, threads=1)[0])


def test_fp16_needs_room_beyond_what_was_seen():
    assert fits_fp16(FP16_MAX / ROOM)
    assert not fits_fp16(FP16_MAX / ROOM * 1.01)
    assert not fits_fp16(float("inf"))
    assert "12.5" in magnitude_note("vision", 12.5)
    assert "room for a factor of 5240" in magnitude_note("vision", 12.5)
    assert "less than the 8 that" not in magnitude_note("vision", 12.5)
    assert "room for a factor of 0.655, less than the 8 that are asked for" in magnitude_note("vision", 1e5)


def test_the_bytes_of_a_frame_and_their_normalisation_are_not_measured():
    model = outlier_model(loud=1.0)
    frame = helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", WIDTH])
    constants = {"white": np.float32(255), "mean": np.float32(0.5)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    before = [("Cast", ["x"], "wide", {"to": TensorProto.FLOAT}), ("Div", ["wide", "white"], "whole", {})]
    before.append(("Sub", ["whole", "mean"], "normal", {}))
    nodes = [helper.make_node(kind, given, [name], **more) for kind, given, name, more in before]
    model.graph.node[0].input[0] = "normal"
    nodes.extend(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.input.append(frame)
    largest, name = largest_magnitude(model, [{"x": np.full((4, WIDTH), 255, np.uint8)}], threads=1)
    assert largest < 100
    assert name not in ("wide", "whole", "normal")


@pytest.mark.parametrize(
    ("loud", "named", "precision", "says"),
    [
        (1.0, (), "fp16", "room for"),
        (1e5, (), "bf16", "for fp16 all the same: vision=fp16"),
        (1e5, ("vision",), "fp16", "as asked"),
    ],
)
def test_the_measured_figure_decides_between_fp16_and_bf16(monkeypatch, loud, named, precision, says, tmp_path):
    from types import SimpleNamespace

    import onnx
    from flamest.export.precision import lowering

    def write_graph(spec, folder):
        onnx.save(outlier_model(loud=loud), folder / "g.onnx")
        return SimpleNamespace(file="g.onnx")

    monkeypatch.setattr(lowering, "write_graph", write_graph)
    choice = PrecisionChoice({"vision": "fp16"}, named=frozenset(named), instead_of_fp16="bf16")
    changed, note = measure_fp16(SimpleNamespace(name="vision"), Lowering(choice, threads=1), rows(0, 2))
    assert changed.choice.of("vision") == precision
    assert says in note


class _Part:
    title, feeds = "a part", None

    def __init__(self):
        from types import SimpleNamespace

        self.specs = (SimpleNamespace(name="cnn"),)


@pytest.mark.parametrize("by_default", [True, False])
def test_a_missed_limit_means_fp32_by_default_and_an_error_on_request(monkeypatch, silent, tmp_path, by_default):
    tried = []

    def export(self, part):
        tried.append(self.lowering.choice.of("cnn"))
        if tried[-1] != "fp32":
            raise DataError("graph 'cnn' in bf16 is too far off", fix="x", code="parity_failed")
        return "exported"

    monkeypatch.setattr(ExportContext, "_export", export)
    choice = PrecisionChoice({"cnn": "bf16"}, by_default=by_default)
    context = ExportContext(tmp_path, silent, 1, Lowering(choice), seeded_clips(CHAIN_SEED))
    with contextlib.nullcontext() if by_default else pytest.raises(DataError, match="too far off"):
        assert context.export(_Part()) == "exported"
    assert tried == (["bf16", "fp32"] if by_default else ["bf16"])
    assert [note.startswith("cnn in fp32 after all: ") for note in context.notes] == [True] * by_default
