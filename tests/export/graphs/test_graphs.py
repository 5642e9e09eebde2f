"""The written graphs: names, axes, one file each, nothing stored twice."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from flamest.base.errors import InvariantError
from flamest.runtime.backends.onnxruntime_cpu import open_session
from flamest.runtime.bundle.graph_records import Tensor
from flamest.runtime.bundle.manifest import MASKED_SCORE
from flamest.runtime.bundle.manifest_reading import read_manifest

GRAPHS = ("vision", "text", "cnn", "keyframes")


@pytest.fixture(scope="module")
def models(tiny_bundle):
    return {name: onnx.load(str(tiny_bundle / f"{name}.onnx")) for name in GRAPHS}


def described(values):
    return tuple(
        Tensor(
            value.name,
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_has_the_tensors_of_the_manifest(tiny_bundle, models, name):
    said, graph = read_manifest(tiny_bundle).graphs[name], models[name].graph
    assert described(graph.input) == said.inputs
    assert described(graph.output) == said.outputs
    assert said.opset == next(entry.version for entry in models[name].opset_import if entry.domain == "")
    words = {word for tensor in (*said.inputs, *said.outputs) for word in tensor.shape if isinstance(word, str)}
    assert words <= {"batch", "tokens", "past", "past + tokens", "patches", "frames"}
    assert {part.strip() for word in words for part in word.split("+")} == set(said.axes)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_one_file_of_standard_operators(models, name):
    for tensor in models[name].graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT
        assert not tensor.external_data
    assert {node.domain for node in models[name].graph.node} == {""}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_carries_no_notes_of_the_exporter(models, name):
    """They would name source files of the building machine."""
    graph = models[name].graph
    for part in (models[name], graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        assert not part.metadata_props
        assert not part.doc_string


def test_the_word_embedding_is_stored_once(models):
    sizes = [tuple(tensor.dims) for tensor in models["text"].graph.initializer]
    assert [size for size in sizes if 30_524 in size and len(size) == 2] == [(30_524, 768)]


def test_a_masked_token_changes_nothing(tiny_bundle):
    text = open_session(tiny_bundle / "text.onnx", threads=2)
    spec = read_manifest(tiny_bundle).vlm.text
    generator = np.random.default_rng(1)
    caches = {}
    for layer in range(spec.layers):
        for part, shape in (("key", (1, 12, 64, 37)), ("value", (1, 12, 37, 64))):
            caches[f"past_{part}_{layer:02d}"] = np.zeros((1, 12, 0, 64), np.float32)
            caches[f"cross_{part}_{layer:02d}"] = generator.standard_normal(shape, dtype=np.float32)
    mask = np.zeros((1, 1, 4, 4), np.float32)
    mask[..., 3] = MASKED_SCORE
    first, second = (
        text.run(
            {"token_ids": np.array([[101, 500, 600, last]]), "positions": np.arange(4)[None], "mask": mask, **caches}
        )
        for last in (0, 700)
    )
    np.testing.assert_array_equal(first["hidden"][:, :3], second["hidden"][:, :3])
    assert not np.array_equal(first["hidden"][:, 3], second["hidden"][:, 3])


def test_a_graph_of_another_shape_than_promised_is_refused(tmp_path, tiny_slow):
    import dataclasses

    from flamest.export.graphs.export import write_graph
    from flamest.export.graphs.spec import keyframe_spec
    from flamest.export.networks.preprocessing import keyframe_candidates

    spec = keyframe_spec(tiny_slow.net, keyframe_candidates(tiny_slow.form.keyframe_size))
    wrong = dataclasses.replace(spec, outputs=(Tensor("features", "float32", ("frames", 127)),))
    with pytest.raises(InvariantError, match=r"output features has shape .*128.*expected .*127"):
        write_graph(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_dtype_histogram_of_fp32_graphs_names_fp32_alone(tiny_bundle):
    graphs = read_manifest(tiny_bundle).graphs
    assert {(graph.precision, *graph.dtype_histogram) for graph in graphs.values()} == {("fp32", "float32")}
    assert graphs["text"].dtype_histogram["float32"]["Gemm"] == 2  # before and of the output projection
    assert graphs["keyframes"].dtype_histogram["float32"]["Conv"] > 5
