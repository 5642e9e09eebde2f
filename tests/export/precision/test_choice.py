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


@pytest.mark.parametrize(("backend", "instead"), [("onnx", "fp32"), ("tensorrt", "bf16")])
def test_fp16_for_all_leaves_out_blips_image_encoder_with_a_note(backend, instead):
    choice = choose_precision(("fp16",), BLIP_SLOW, backend)
    assert choice.by_graph == {"vision": instead, "text": "fp16", "cnn": "fp16"}
    assert any(note.startswith(f"vision is {instead}, not fp16") for note in choice.notes)
    assert not any("overflows" in note for note in choose_precision(("fp16",), CLIP, backend).notes)


@pytest.mark.parametrize(("capability", "instead"), [("", "bf16"), ("8.0", "bf16"), ("12.0", "bf16"), ("7.5", "fp32")])
def test_a_gpu_without_bf16_gets_the_image_encoder_in_fp32(capability, instead):
    choice = choose_precision(("fp16",), BLIP_SLOW, "tensorrt", capability)
    assert choice.by_graph == {"vision": instead, "text": "fp16", "cnn": "fp16"}
    assert "bf16 needs a GPU of compute capability 8.0 or more" in choice.notes[1]
    assert ("this one has 7.5" if capability == "7.5" else "--precision vision=fp32") in choice.notes[1]


def test_fp16_for_the_image_encoder_is_built_when_named():
    choice = choose_precision(("vision=fp16",), BLIP_SLOW, "tensorrt")
    assert choice.of("vision") == "fp16"
    assert "overflows" in choice.notes[0]


def test_bf16_in_an_onnx_bundle_notes_which_runtimes_open_it():
    (note,) = choose_precision(("cnn=bf16",), BLIP_SLOW, "onnx").notes
    assert "cnn in bf16" in note
    assert "ONNX Runtime on a CPU does not" in note
    assert choose_precision(("cnn=bf16",), BLIP_SLOW, "tensorrt").notes == ()
