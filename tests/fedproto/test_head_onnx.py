"""ONNX graphs of a trained head: the probabilities of predict, in other runtimes, from files that say what they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from flamest.agent.training.trainer import HeadTrainer, log_softmax
from flamest.base.errors import DataError, MissingExtra, UsageError
from flamest.base.extras import role
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.head_onnx import encode_onnx, known_parts, parse_parts
from flamest.fedproto.model_file import ModelFile, encode_metadata, read_model, write_model
from flamest.fedproto.onnx_files import check_onnx_name, write_onnx

BUNDLE = "f" * 64
HEADS = {
    "the paper's": HeadSpec(2816, 101),
    "softmax regression": HeadSpec(30, 4, hidden=()),
    "one block, standardised": HeadSpec(30, 4, hidden=(8,), standardise=True),
    "two blocks, standardised": HeadSpec(30, 4, hidden=(8,), blocks=(10, 20), standardise=True),
    "three blocks": HeadSpec(30, 2, hidden=(8, 6), blocks=(10, 15, 5)),
    "gated fusion": HeadSpec(2816, 7, blocks=(768, 2048), kind="rgcf"),
    "one class": HeadSpec(5, 1),
}


def model_of(head: HeadSpec, **changes) -> ModelFile:
    labels = tuple(f"label {number}" for number in range(head.outputs))
    model = ModelFile(head, initial_params(head, 3), labels, BUNDLE, "run-1", 20, {"accuracy": "0.9"})
    return replace(model, **changes)


def rows(head: HeadSpec, count: int) -> np.ndarray:
    return (np.random.default_rng(count).standard_normal((count, head.inputs)) * 3).astype(np.float32)


def feeds(graph, x: np.ndarray) -> dict[str, np.ndarray]:
    ends = np.cumsum(list(graph.inputs.values()))
    return dict(zip(graph.inputs, np.split(x, ends[:-1], axis=1), strict=True))


def expected(model: ModelFile, x: np.ndarray) -> np.ndarray:
    """Probabilities as predict computes them."""
    return np.exp(log_softmax(HeadTrainer(model.head, threads=1).logits(model.params, x)))


@pytest.mark.parametrize("name", HEADS)
def test_every_graph_gives_predicts_probabilities_in_onnx_runtime(name):
    import onnxruntime

    model = model_of(HEADS[name])
    graphs = encode_onnx(model, parts=known_parts(model.head, BUNDLE), version="1")
    kinds = ["head"] if name in ("softmax regression", "one block, standardised", "one class") else ["head", "fused"]
    assert [graph.kind for graph in graphs] == kinds
    for graph in graphs:
        session = onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])
        assert {one.name: one.shape for one in session.get_inputs()} == {
            key: ["batch", width] for key, width in graph.inputs.items()
        }
        for count in (1, 5):
            x = rows(model.head, count)
            logits, found = session.run(["logits", "probabilities"], feeds(graph, x))
            assert found.dtype == logits.dtype == np.float32
            assert found.shape == logits.shape == (count, model.head.outputs)
            assert np.abs(found - expected(model, x)).max() <= 1e-6
            assert np.abs(np.exp(log_softmax(logits)) - expected(model, x)).max() <= 1e-6


@pytest.mark.parametrize("name", ["the paper's", "gated fusion", "two blocks, standardised"])
def test_every_graph_gives_predicts_probabilities_in_openvino(name, tmp_path):
    pytest.importorskip("openvino")
    from flamest.runtime.backends.openvino_cpu import _core  # one runtime for the process

    model = model_of(HEADS[name])
    for row in write_onnx(tmp_path / "m.onnx", model, parts=known_parts(model.head, BUNDLE)):
        network = _core().compile_model(row["file"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for count in (1, 5):
            x = rows(model.head, count)
            ends = np.cumsum(list(row["inputs"].values()))[:-1]
            found = network(dict(zip(row["inputs"], np.split(x, ends, axis=1), strict=True)))["probabilities"]
            assert np.abs(found - expected(model, x)).max() <= 1e-6


def test_the_fused_graphs_inputs_are_the_parts_of_the_row():
    names = {name: list(encode_onnx(model_of(head), parts=known_parts(head, BUNDLE), version="1")[-1].inputs.items())
             for name, head in HEADS.items()}  # fmt: skip
    assert names["the paper's"] == names["gated fusion"] == [("vlm", 768), ("cnn", 2048)]
    assert names["three blocks"] == [("part_0", 10), ("part_1", 15), ("part_2", 5)]
    assert names["one block, standardised"] == [("x", 30)], "one part: nothing to concatenate"


def test_parts_that_are_not_known_are_not_guessed():
    assert known_parts(HeadSpec(2816, 2), BUNDLE) == (768, 2048)
    assert known_parts(HeadSpec(1280, 2), BUNDLE) == (768, 512)
    assert known_parts(HeadSpec(2048, 2), BUNDLE) == ()
    assert known_parts(HeadSpec(2816, 2), "imported:mine:2816") == (), "nobody knows what these are"
    assert known_parts(HeadSpec(2816, 2, blocks=(816, 2000)), "imported:mine:2816") == (816, 2000)


@pytest.mark.parametrize("parts", [(1, 2), (30, 30), (0, 30), (-1, 31), (1,) * 30, (31,)])
def test_parts_that_do_not_fit_the_head_are_refused(parts):
    with pytest.raises(DataError, match="expected widths that add up to the head's 30 inputs"):
        encode_onnx(model_of(HEADS["softmax regression"]), parts=parts, version="1")


@pytest.mark.parametrize("text", ["", "768", "768,2048"])
def test_parts_are_whole_numbers_with_commas(text):
    if text:
        assert parse_parts(text) == tuple(map(int, text.split(",")))
    for wrong in (f"{text},", "a,b", "-1,2", "1.5,2", "٣,٤", "0,5", "99999,1", ",".join("1" * 17), "1" * 5000):
        with pytest.raises(UsageError):
            parse_parts(wrong)


def test_a_file_says_what_it_is_in_json():
    labels = ("walk", 'say "run"', "跳", "a,b\\n", "ü" * 200, "🏃")
    model = model_of(HeadSpec(30, 6, hidden=()), labels=labels, run="rün", metadata={"settings": '{"a": "\x00\u2028"}'})
    (graph,) = encode_onnx(model, version="9.9.9")
    loaded = onnx.load_from_string(graph.data)
    found = {entry.key: entry.value for entry in loaded.metadata_props}
    assert all(value.isascii() and value.isprintable() for value in found.values())
    assert {key: json.loads(value) for key, value in found.items()} == {
        **{key: json.loads(value) for key, value in encode_metadata(model).items()},
        "flamest.version": "9.9.9",
    }
    assert tuple(json.loads(found["flamest.labels"])) == labels
    assert (json.loads(found["flamest.run"]), json.loads(found["flamest.round"])) == ("rün", 20)
    assert [(opset.domain, opset.version) for opset in loaded.opset_import] == [("", 17)]
    release = next(row for row in onnx.helper.VERSION_TABLE if row[0] == "1.12.0")
    assert (loaded.ir_version, 17) == release[1:3], "runtimes of ONNX 1.12 refuse a newer IR version"
    assert not any(tensor.external_data for tensor in loaded.graph.initializer), "one file"


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("a", "b\x1b[2J")},
        {"labels": ("a", "a")},
        {"labels": ("a",)},
        {"fingerprint": "x\ny"},
        {"run": "\x07"},
        {"round": -1},
        {"params": {"0.weight": np.full((2, 30), np.nan, np.float32), "0.bias": np.zeros(2, np.float32)}},
        {"params": {"0.weight": np.zeros((2, 30), np.float32)}},
    ],
)
def test_a_model_that_cannot_be_a_file_is_no_graph_either(changes):
    with pytest.raises(DataError):
        encode_onnx(model_of(HeadSpec(30, 2, hidden=()), **changes), version="1")


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = model_of(HEADS["gated fusion"])
    write_model(tmp_path / "m.safetensors", model)
    first, second = (
        [graph.data for graph in encode_onnx(each, parts=(768, 2048), version="1")]
        for each in (model, read_model(tmp_path / "m.safetensors"))
    )
    assert first == second


def test_files_are_whole_or_as_they_were(tmp_path, monkeypatch):
    model = model_of(HEADS["two blocks, standardised"])
    rows_ = write_onnx(tmp_path / "m.onnx", model, parts=(10, 20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.fused.onnx", "m.onnx"]
    assert [row["file"] for row in rows_] == [str(tmp_path / "m.onnx"), str(tmp_path / "m.fused.onnx")]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError):
        write_onnx(tmp_path / "m.onnx", replace(model, round=3), parts=(10, 21))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left"):
        write_onnx(tmp_path / "m.onnx", replace(model, round=3), parts=(10, 20))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["m", "m.safetensors", "m.fused.onnx", ".onnx", "m.ONNX"])
def test_the_heads_file_is_called_onnx(name, tmp_path):
    with pytest.raises(UsageError, match=r"expected a name that ends in \.onnx"):
        check_onnx_name(tmp_path / name)


def test_without_onnx_the_extra_that_fits_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with role("coordinator"), pytest.raises(MissingExtra) as refused:
        encode_onnx(model_of(HEADS["one class"]), version="1")
    assert "pip install 'flamest[coordinator,onnx]'" in refused.value.fix
