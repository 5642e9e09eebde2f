"""Checkpoints are taken only when every name and shape fits, and read without running code."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from flamest.base.errors import DataError
from flamest.export.networks.blip import BLIP_BASE_CONFIG, build_blip
from flamest.export.networks.reference import parameter_counts
from flamest.export.networks.slow_i3d import build_slow_r50
from flamest.export.weights.checkpoints import check_tensors, load_checkpoint_tensors
from flamest.export.weights.hub_folder import fill_blip
from flamest.export.weights.video import fill_video
from safetensors.torch import save_file

WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
PROJECTION = "text_decoder.cls.predictions.decoder.weight"
POSITION_IDS = "text_decoder.bert.embeddings.position_ids"


def on_paper(shapes):
    """Tensors with shape and kind, and no values."""
    whole = ("num_batches_tracked", "position_ids")
    return {
        name: torch.empty(shape, dtype=torch.int64 if name.endswith(whole) else torch.float32, device="meta")
        for name, shape in shapes.items()
    }


def shapes_of(model):
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_published_blip_list_is_what_the_library_builds(blip_base_shapes):
    model = build_blip(BLIP_BASE_CONFIG)
    assert {**shapes_of(model), POSITION_IDS: [1, 512]} == blip_base_shapes
    assert parameter_counts(model) == (247_414_076, 223_971_644)
    assert model.config.text_config.num_attention_heads == 12


def test_the_published_slow_list_is_what_the_library_builds(slow_r50_shapes):
    net = build_slow_r50()
    assert shapes_of(net) == slow_r50_shapes
    assert parameter_counts(net) == (32_454_096, 32_454_096)


CHANGES = {
    "missing": (lambda t, k: t.pop(k), "1 missing: '{key}'"),
    "extra": (lambda t, k: t.update({f"{k}.more": t[k]}), "1 unexpected: '{key}.more'"),
    "renamed": (lambda t, k: t.update({f"old.{k}": t.pop(k)}), "1 missing: '{key}'. 1 unexpected: 'old.{key}'"),
    "wrong shape": (lambda t, k: t.update({k: t[k][:-1]}), "'{key}' is "),
    "wrong kind": (lambda t, k: t.update({k: t[k].long()}), "'{key}' is int64"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("golden", "key"),
    [
        ("blip_base_shapes", "text_decoder.bert.encoder.layer.11.crossattention.self.key.weight"),
        ("blip_base_shapes", "vision_model.embeddings.position_embedding"),
        ("slow_r50_shapes", "blocks.4.res_blocks.2.branch2.conv_a.weight"),
        ("slow_r50_shapes", "blocks.5.proj.bias"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(request, tmp_path, golden, key, change):
    expected = on_paper(request.getfixturevalue(golden))
    found = dict(expected)
    check_tensors(found, expected, file=tmp_path / "a.safetensors", what="the model")
    alter, said = CHANGES[change]
    alter(found, key)
    with pytest.raises(DataError) as refused:
        check_tensors(found, expected, file=tmp_path / "a.safetensors", what="the model")
    assert said.format(key=key) in refused.value.message
    assert str(tmp_path / "a.safetensors") in refused.value.message
    assert (refused.value.code, refused.value.exit_code) == ("wrong_checkpoint", 65)


def test_values_of_a_checkpoint_arrive_in_the_model(tiny_blip, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in tiny_blip.model.state_dict().items()}
    model = build_blip(tiny_blip.model.config.to_dict())
    fill_blip(model, tensors, file=tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    assert model.text_decoder.cls.predictions.decoder.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("left_out", [PROJECTION, WORDS, "text_decoder.cls.predictions.bias"])
def test_a_tied_tensor_may_be_given_once(tiny_blip, tmp_path, left_out):
    tensors = dict(tiny_blip.model.state_dict())
    del tensors[left_out]
    model = build_blip(tiny_blip.model.config.to_dict())
    fill_blip(model, tensors, file=tmp_path)
    assert torch.equal(model.state_dict()[left_out], tiny_blip.model.state_dict()[left_out])


def test_tied_tensors_that_differ_are_refused(tiny_blip, tmp_path):
    tensors = dict(tiny_blip.model.state_dict())
    tensors[PROJECTION] = tensors[PROJECTION] + 1
    with pytest.raises(DataError, match=rf"'{PROJECTION}' and '{WORDS}' differ"):
        fill_blip(build_blip(tiny_blip.model.config.to_dict()), tensors, file=tmp_path)


def test_an_untied_output_projection_is_kept(tiny_blip, tmp_path):
    config = tiny_blip.model.config.to_dict()
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    tensors = dict(tiny_blip.model.state_dict())
    tensors[PROJECTION] = tensors[PROJECTION] + 1
    model = build_blip(config)
    fill_blip(model, tensors, file=tmp_path, tied=False)
    assert torch.equal(model.text_decoder.cls.predictions.decoder.weight, tensors[PROJECTION])
    assert torch.equal(model.get_input_embeddings().weight, tensors[WORDS])


def test_stored_position_ids_are_accepted_when_they_count_up(tiny_blip, tmp_path):
    tensors = dict(tiny_blip.model.state_dict())
    config = tiny_blip.model.config.to_dict()
    fill_blip(build_blip(config), {**tensors, POSITION_IDS: torch.arange(512)[None]}, file=tmp_path)
    with pytest.raises(DataError, match="position_ids' is not 0, 1, 2"):
        fill_blip(build_blip(config), {**tensors, POSITION_IDS: torch.zeros(1, 512)}, file=tmp_path)


def some_slow_weights(shapes):
    """Small values that are the same each time; variances are positive."""
    tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        if not name.endswith("num_batches_tracked"):
            tensors[name] = torch.full(shape, 0.5 + index / 1000)
    return tensors


def test_a_model_zoo_file_is_read_with_its_model_state_unwrapped(tmp_path, slow_r50_shapes):
    weights = some_slow_weights(slow_r50_shapes)
    torch.save({"model_state": weights}, tmp_path / "SLOW_8x8_R50.pyth")
    net = fill_video(
        build_slow_r50(),
        load_checkpoint_tensors(tmp_path / "SLOW_8x8_R50.pyth"),
        file=tmp_path / "SLOW_8x8_R50.pyth",
        what="slow_r50",
    )
    for name, tensor in weights.items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_the_same_weights_from_another_file_format_have_the_same_hash(tmp_path, slow_r50_shapes):
    from flamest.export.weights.loading import open_video
    from flamest.export.weights.source import parse_source

    weights = some_slow_weights(slow_r50_shapes)
    counts = {name: torch.tensor(7) for name in slow_r50_shapes if name.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "a.pth")
    save_file({**weights, **counts}, tmp_path / "b.safetensors")
    first, second = (
        open_video(parse_source("slow", str(tmp_path / name))).source for name in ("a.pth", "b.safetensors")
    )
    assert first.weights_sha256 == second.weights_sha256
    assert (first.name, second.name) == ("a.pth", "b.safetensors")
    assert first.parameters == 32_454_096


class Surprise:
    def __reduce__(self):
        return print, ("this ran",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, capsys):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model_state": Surprise()}))
    torch.save({"model_state": {"w": torch.zeros(2)}, "more": Surprise()}, tmp_path / "evil.pyth")
    for name in ("evil.pth", "evil.pyth"):
        with pytest.raises(DataError, match=rf"{name} cannot be read as PyTorch weights"):
            load_checkpoint_tensors(tmp_path / name)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.pkl", "model.h5", "model", "model.onnx", "model.zip"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"expected \.safetensors, or one of \.pth, \.pyth, \.bin"):
        load_checkpoint_tensors(tmp_path / name)


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_damaged_file_is_refused(tmp_path, name):
    save_file({"w": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    torch.save({"w": torch.zeros(1000)}, tmp_path / "whole.pth")
    whole = (tmp_path / name.replace("cut", "whole")).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{name} (cannot be read as|is cut short)"):
        load_checkpoint_tensors(tmp_path / name)


def test_a_state_dict_with_other_values_than_tensors_is_refused(tmp_path):
    torch.save({"w": torch.zeros(2), "epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(DataError, match="entry 'epoch' is int, expected a tensor"):
        load_checkpoint_tensors(tmp_path / "run.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds list, expected a state dict"):
        load_checkpoint_tensors(tmp_path / "list.pth")


def test_a_negative_variance_is_refused(tmp_path, slow_r50_shapes):
    weights = some_slow_weights(slow_r50_shapes)
    weights["blocks.0.norm.running_var"] = -weights["blocks.0.norm.running_var"]
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"'blocks.0.norm.running_var' holds a negative variance"):
        fill_video(
            build_slow_r50(),
            load_checkpoint_tensors(tmp_path / "a.safetensors"),
            file=tmp_path / "a.safetensors",
            what="slow_r50",
        )


def test_golden_lists_hold_names_and_shapes_only(blip_base_shapes, slow_r50_shapes):
    assert (len(blip_base_shapes), len(slow_r50_shapes)) == (474, 320)
    assert json.dumps(blip_base_shapes)
