"""``flamest-agent evaluate``: a model on the silo's own held-out clips, next to one that is trained alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from flamest.agent.cli.main import app
from flamest.agent.evaluate import EvaluationRequest, calibration_error, evaluate_on_store
from flamest.agent.extraction.aliases import LabelAliases
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.training.local import LocalRequest, train_from_store
from flamest.agent.training.model_note import TrainingNote, training_note
from flamest.base.errors import DataError
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.model_file import ModelFile, read_model, write_model
from flamest.fedproto.records import TrainSettings
from flamest.runtime.clip_records import Clip
from typer.testing import CliRunner

LABELS = ("fall", "run", "walk")
TRAIN = TrainSettings(epochs=2, batch_size=16, learning_rate=0.05)
GIVEN = {"hidden": [], "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05}}


@pytest.fixture
def store(tmp_path):
    """120 clips in 30 groups of one class each; a class is a direction."""
    random, path = np.random.default_rng(1), tmp_path / "features.sqlite"
    with FeatureStore.open(path) as opened:
        rows = []
        for number in range(120):
            group = number // 4
            label = LABELS[group % 3]
            x = (np.eye(3)[group % 3] + 0.2 * random.normal(size=3)).astype(np.float32)
            clip = Clip(tmp_path / f"{number}.mp4", f"{number:064x}", label, f"scene{group}")
            rows.append((f"{label}/{number}.mp4", FeatureRow(clip, x, 1, "f", "fp32")))
        opened.add_rows(rows)
    return path


def trained(store, out, *, seed=0, rounds=4, hold_out=0.3):
    request = LocalRequest(store, None, None, "paper", GIVEN, rounds, hold_out, seed, 1)
    train_from_store(request, out)
    return read_model(out)


def of_a_run(tmp_path, model: ModelFile, **changes) -> ModelFile:
    """The same model as one of a federation, whose file this silo's daemon has written."""
    path = tmp_path / "shared.safetensors"
    write_model(path, replace(model, run="run-1", **changes))
    return path


def test_the_held_out_clips_are_those_of_the_training(store, tmp_path):
    model = trained(store, tmp_path / "own.safetensors", seed=5)
    assert training_note(model) == TrainingNote(5, 0.3, 4, TRAIN)
    found = evaluate_on_store(tmp_path / "own.safetensors", EvaluationRequest(store, threads=1))
    assert found["held_out"]
    assert found["clips"] == 36
    assert found["groups"] == 9
    assert found["accuracy"] == found["correct"] / 36 > 0.9
    assert found["accuracy_low"] < found["accuracy"] <= found["accuracy_high"]
    assert {label: each["clips"] for label, each in found["classes"].items()} == dict.fromkeys(LABELS, 12)
    assert found["own"] is None
    assert "alone itself" in found["no_own"]


def test_a_shared_model_is_compared_with_one_trained_alone_now(store, tmp_path):
    model = trained(store, tmp_path / "own.safetensors")
    worse = {name: -tensor for name, tensor in model.params.items()}
    found = evaluate_on_store(of_a_run(tmp_path, model, params=worse), EvaluationRequest(store, threads=1))
    alone = evaluate_on_store(tmp_path / "own.safetensors", EvaluationRequest(store, threads=1))
    assert found["own"]["correct"] == alone["correct"], "the model trained now is the one of flamest-agent train"
    assert found["gain"]["gain"] == pytest.approx(found["accuracy"] - found["own"]["accuracy"])
    assert found["gain"]["high"] < 0
    wrong = {each["name"]: each for each in found["wrong"]}
    assert len(wrong) == found["clips"] - found["correct"]
    assert all(name.startswith(each["label"]) and each["predicted"] != each["label"] for name, each in wrong.items())
    probabilities = [each["probability"] for each in found["wrong"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_model_without_a_note_is_evaluated_on_all_clips(store, tmp_path):
    path = of_a_run(tmp_path, trained(store, tmp_path / "own.safetensors"), metadata={})
    found = evaluate_on_store(path, EvaluationRequest(store, threads=1))
    assert (found["held_out"], found["clips"], found["own"]) == (False, 120, None)
    assert "does not say" in found["no_own"]
    given = evaluate_on_store(path, EvaluationRequest(store, threads=1, hold_out=0.3, seed=0))
    assert (given["held_out"], given["clips"]) == (True, 36)


def test_an_own_model_of_another_split_is_refused(store, tmp_path):
    path = of_a_run(tmp_path, trained(store, tmp_path / "own.safetensors"))
    trained(store, tmp_path / "other.safetensors", seed=9)
    request = EvaluationRequest(store, own=tmp_path / "other.safetensors", threads=1)
    with pytest.raises(DataError) as raised:
        evaluate_on_store(path, request)
    assert raised.value.code == "other_split"
    assert "--seed 0 --hold-out 0.3" in raised.value.fix
    assert evaluate_on_store(path, replace(request, own=tmp_path / "own.safetensors"))["gain"]["gain"] == 0.0


def test_an_own_model_of_other_classes_is_compared_by_their_names(store, tmp_path):
    model = trained(store, tmp_path / "own.safetensors")
    order = [2, 0, 1]
    other = replace(
        model,
        labels=("walk", "fall", "jump"),
        params={name: tensor[order] for name, tensor in model.params.items()},
    )
    write_model(tmp_path / "other.safetensors", other)
    request = EvaluationRequest(store, own=tmp_path / "other.safetensors", threads=1)
    found = evaluate_on_store(of_a_run(tmp_path, model), request)
    assert {label: each["own_correct"] for label, each in found["classes"].items()} == {
        "fall": 12,
        "run": 0,
        "walk": 12,
    }
    assert all(each["own"] in other.labels for each in found["wrong"])


def test_clips_without_a_class_of_the_model_are_counted(store, tmp_path):
    model = trained(store, tmp_path / "own.safetensors")
    unknown = ModelFile(HeadSpec(3, 2, ()), _two(model), ("sit", "stand"), model.fingerprint, "run-1", 1)
    write_model(tmp_path / "unknown.safetensors", unknown)
    request = EvaluationRequest(store, threads=1)
    with pytest.raises(DataError, match="120 have none or another one") as raised:
        evaluate_on_store(tmp_path / "unknown.safetensors", request)
    assert raised.value.code == "no_clips"
    aliases = LabelAliases({"fall": "sit", "run": "stand"})
    assert evaluate_on_store(tmp_path / "unknown.safetensors", replace(request, aliases=aliases))["ignored"] == 40


def _two(model: ModelFile) -> dict[str, np.ndarray]:
    return {name: tensor[:2] for name, tensor in model.params.items()}


def test_scores_that_are_not_finite_are_wrong_and_no_error(store, tmp_path):
    model = trained(store, tmp_path / "own.safetensors")
    huge = {name: np.full_like(tensor, 3e38) for name, tensor in model.params.items()}
    found = evaluate_on_store(of_a_run(tmp_path, model, params=huge), EvaluationRequest(store, alone=False, threads=1))
    assert 0 <= found["calibration_error"] <= 1
    assert json.dumps(found, allow_nan=False)


def test_a_calibrated_model_has_no_calibration_error():
    probability = np.repeat([0.25, 0.75], 100)
    correct = np.concatenate([np.arange(100) < 25, np.arange(100) < 75])
    assert calibration_error(probability, correct) == 0.0
    assert calibration_error(np.ones(4), np.array([True, True, False, False])) == 0.5


def test_the_json_has_these_fields(store, tmp_path):
    """The issue's contract, and what a script can rely on."""
    model = trained(store, tmp_path / "own.safetensors")
    found = evaluate_on_store(of_a_run(tmp_path, model), EvaluationRequest(store, threads=1))
    gain = {"gain": float, "low": float, "high": float, "clips": int, "groups": int}
    figures = {
        "accuracy": float,
        "accuracy_low": float,
        "accuracy_high": float,
        "correct": int,
        "calibration_error": float,
    }
    whole = {"model": str, "run": str, "round": int, "clips": int, "groups": int, "held_out": bool, "ignored": int}
    whole |= {"left_out": int, "own": dict, "no_own": str, "gain": dict, "classes": dict, "wrong": list}
    of_class = {"clips": int, "correct": int, "accuracy": float, "own_correct": int, "gain": type(None)}
    assert {name: type(value) for name, value in found.items()} == {**figures, **whole}
    assert {name: type(value) for name, value in found["own"].items()} == figures
    assert {name: type(value) for name, value in found["gain"].items()} == gain
    assert list(found["classes"]) == list(LABELS)
    for each in found["classes"].values():  # of 12 clips in three groups: too few groups for a gain of its own
        assert {name: type(value) for name, value in each.items()} == of_class


def test_a_class_has_a_gain_where_its_clips_and_groups_suffice(store, tmp_path):
    model = trained(store, tmp_path / "own.safetensors", hold_out=0.6)
    worse = of_a_run(tmp_path, model, params={name: -tensor for name, tensor in model.params.items()})
    found = evaluate_on_store(worse, EvaluationRequest(store, threads=1))
    fall = found["classes"]["fall"]
    assert (fall["clips"], fall["gain"]["clips"], fall["gain"]["groups"]) == (24, 24, 6)
    assert fall["gain"]["gain"] == pytest.approx((fall["correct"] - fall["own_correct"]) / 24)
    assert {each["label"] for each in found["wrong"]} == {
        label for label, each in found["classes"].items() if each["correct"] < each["clips"]
    }


def test_the_command_shows_what_json_has(store, tmp_path):
    shared = of_a_run(tmp_path, trained(store, tmp_path / "own.safetensors"))
    arguments = ["evaluate", "--model", str(shared), "--store", str(store), "--threads", "1"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "run 'run-1', round 4) on 36 clips of 9 groups, held out of training" in shown.output
    assert "gain: +0.0" in shown.output
    assert "fall" in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert {"accuracy", "classes", "calibration_error", "own", "gain", "wrong"} <= set(found)
