"""Values of ``--precision``, and a note for every deviation from them."""

from __future__ import annotations

import pytest
from flamest.base.errors import UsageError
from flamest.export.networks.extractors import EXTRACTORS
from flamest.export.precision.choice import choose_precision

BLIP_SLOW, CLIP = EXTRACTORS["blip+slow"], EXTRACTORS["clip"]


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ((), {"vision": "fp32", "text": "fp32", "cnn": "fp32"}),
        (("int8",), {"vision": "int8", "text": "int8", "cnn": "int8"}),
        (("cnn=int8",), {"vision": "fp32", "text": "fp32", "cnn": "int8"}),
        (("text=fp32", "int8", "vision=bf16"), {"vision": "bf16", "text": "fp32", "cnn": "int8"}),
    ],
)
def test_a_word_is_for_all_graphs_or_for_one(words, chosen):
    assert choose_precision(words, BLIP_SLOW, "onnx").by_graph == chosen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fp8",), "no such precision, expected one of fp32, fp16, bf16, int8"),
        (("vision=fp8",), "no such precision"),
        (("keyframes=int8",), "the keyframe graph stays fp32"),
        (("clip=int8",), "no such graph, expected one of vision, text, cnn"),
        (("int8", "fp16"), "int8 is given for all graphs already"),
        (("cnn=int8", "cnn=fp16"), "cnn=int8 is given already"),
    ],
)
def test_an_unknown_word_is_a_usage_error_with_an_example(words, message):
    with pytest.raises(UsageError, match=message) as refused:
        choose_precision(words, BLIP_SLOW, "onnx")
    assert "flamest-export" in refused.value.fix


@pytest.mark.parametrize(
    ("words", "backend", "capability", "chosen"),
    [
        ((), "onnx", "", {"vision": "fp32", "text": "fp32", "cnn": "fp32"}),
        ((), "tensorrt", "", {"vision": "bf16", "text": "bf16", "cnn": "bf16"}),
        ((), "tensorrt", "8.0", {"vision": "bf16", "text": "bf16", "cnn": "bf16"}),
        ((), "tensorrt", "12.0", {"vision": "bf16", "text": "bf16", "cnn": "bf16"}),
        ((), "tensorrt", "7.5", {"vision": "fp16", "text": "fp16", "cnn": "fp16"}),
        (("fp32",), "tensorrt", "9.0", {"vision": "fp32", "text": "fp32", "cnn": "fp32"}),
        (("fp16",), "tensorrt", "9.0", {"vision": "fp16", "text": "fp16", "cnn": "fp16"}),
        (("int8",), "onnx", "", {"vision": "int8", "text": "int8", "cnn": "int8"}),
        (("int8",), "tensorrt", "9.0", {"vision": "int8", "text": "bf16", "cnn": "int8"}),
        (("int8",), "tensorrt", "7.5", {"vision": "int8", "text": "fp16", "cnn": "int8"}),
    ],
)
def test_precision_by_backend_and_gpu(words, backend, capability, chosen):
    choice = choose_precision(words, BLIP_SLOW, backend, capability)
    assert choice.by_graph == chosen
    assert choice.by_default == (backend == "tensorrt" and not words)
    if choice.by_default or (words == ("int8",) and backend == "tensorrt"):
        assert "bf16 needs a GPU of compute capability 8.0 or more" in choice.notes[0]
        assert (f"this one has {capability}" if capability else "--precision fp16") in choice.notes[0]
    else:
        assert choice.notes == ()


def test_fp16_in_an_image_encoder_is_to_be_measured():
    choice = choose_precision(("fp16",), BLIP_SLOW, "tensorrt")
    assert (choice.uncertain, choice.instead_of_fp16, choice.named) == (("vision",), "bf16", frozenset())
    assert choose_precision(("fp16",), BLIP_SLOW, "onnx").instead_of_fp16 == "fp32"
    assert choose_precision(("fp16",), BLIP_SLOW, "tensorrt", "7.5").instead_of_fp16 == "fp32"
    assert choose_precision(("clip=fp16",), CLIP, "onnx").uncertain == ("clip",)
    assert choose_precision(("bf16",), BLIP_SLOW, "tensorrt").uncertain == ()


def test_bf16_in_an_onnx_bundle_notes_which_runtimes_open_it():
    (note,) = choose_precision(("cnn=bf16",), BLIP_SLOW, "onnx").notes
    assert "cnn in bf16" in note
    assert "ONNX Runtime on a CPU does not" in note
    assert choose_precision(("cnn=bf16",), BLIP_SLOW, "tensorrt").notes == ()
