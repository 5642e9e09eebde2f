"""Arguments of another type or out of range: an error of the package that says what to write."""

from __future__ import annotations

from types import SimpleNamespace

import flamest as fl
import numpy as np
import pytest

QUICK = {"recipe": "paper", "rounds": 1, "epochs": 1, "hidden": (4,), "progress": False}
X, Y = np.eye(4), ["a", "b", "a", "b"]


@pytest.fixture(scope="module")
def given(features, split):
    silos, test = split
    return SimpleNamespace(f=features, silos=silos, test=test, run=fl.simulate(silos, **QUICK))


CALLS = {
    "an array to split": (lambda g: fl.split(X), "fl.Features.from_arrays(x, y)"),
    "a path to split": (lambda g: fl.split("features.sqlite"), "fl.load('features.sqlite')"),
    "a split to split": (lambda g: fl.split(fl.split(g.f)), "silos, test = fl.split(f)"),
    "an array as test": (lambda g: fl.simulate(g.silos, test=X, **QUICK), "fl.Features.from_arrays"),
    "two arrays as test": (lambda g: fl.simulate(g.silos, test=(X, Y), **QUICK), "fl.Features.from_arrays"),
    "silos as test": (lambda g: fl.train(g.silos, test=g.silos, **QUICK), "test.union"),
    "accuracy of an array": (lambda g: g.run.model.accuracy(g.f.x), "fl.Features.from_arrays"),
    "a path to classify": (lambda g: g.run.model.classify("f.npz"), "fl.load('f.npz')"),
    "silos as text": (lambda g: fl.split(g.f, silos="4"), "write silos=4"),
    "half a silo": (lambda g: fl.split(g.f, silos=1.5), "write silos=4"),
    "no number of silos": (lambda g: fl.split(g.f, silos=None), "write silos=4"),
    "a seed below 0": (lambda g: fl.split(g.f, seed=-1), "write seed=0"),
    "no seed": (lambda g: fl.split(g.f, seed=None), "write seed=0"),
    "a run's seed below 0": (lambda g: fl.simulate(g.silos, seed=-1, **QUICK), "write seed=0"),
    "a text as beta": (lambda g: fl.split(g.f, beta="a"), "write beta=0.6"),
    "a beta without end": (lambda g: fl.split(g.f, beta=float("inf")), "write beta=0.6"),
    "no share of test clips": (lambda g: fl.split(g.f, test=None), "write test=0.2"),
    "a text as smallest": (lambda g: fl.split(g.f, smallest="a"), "write smallest=2"),
    "smallest below 0": (lambda g: fl.split(g.f, smallest=-1), "write smallest=2"),
    "a list as partition": (lambda g: fl.split(g.f, partition=[]), "partition=my_partition"),
    "workers as text": (lambda g: fl.simulate(g.silos, workers="a", **QUICK), "write workers=4"),
    "no worker": (lambda g: fl.simulate(g.silos, workers=0, **QUICK), "write workers=4"),
    "no thread": (lambda g: fl.train(g.silos, threads=0, **QUICK), "write threads=4"),
    "numbers as names": (lambda g: fl.simulate({0: g.f, 1: g.f}, **QUICK), "'north'"),
    "an empty name": (lambda g: fl.simulate({"": g.f}, **QUICK), "'north'"),
    "an array to train on": (lambda g: fl.train(X, **QUICK), "fl.split"),
    "nothing to load": (lambda g: fl.load(None), "fl.load('features.sqlite')"),
    "a number as fingerprint": (lambda g: fl.load("miniworld", fingerprint=3), "leave it out"),
    "no model file": (lambda g: fl.load_model(None), "fl.load_model('model.safetensors')"),
    "no file to write": (lambda g: g.run.save(None), "save('model.safetensors')"),
    "no file for features": (lambda g: g.f.save(None), "save('features.npz')"),
    "no bundle": (lambda g: fl.open_bundle(None), "fl.open_bundle('miniworld')"),
    "no videos": (lambda g: fl.predict(None, model=g.run, bundle="miniworld"), "fl.predict(['clip.mp4']"),
    "no model": (lambda g: fl.predict("a.mp4", model=None, bundle="miniworld"), "model=run.model"),
    "no top label": (lambda g: fl.predict("a.mp4", model=g.run, bundle="miniworld", top=0), "write top=5"),
    "no head": (lambda g: fl.train(g.f, head=None, rounds=1), "head='mlp'"),
    "a number as head": (lambda g: fl.train(g.f, head=3, rounds=1), "head='mlp'"),
    "no folder of videos": (lambda g: fl.open_bundle().extract(None), "bundle.extract('videos')"),
    "a name with a space": (lambda g: fl.Features.from_arrays(X, Y, name="A B"), "write name='vgg16-fc7'"),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_argument_of_another_kind_is_a_usage_error_with_its_fix(given, call):
    function, fix = CALLS[call]
    with pytest.raises(fl.FlamestError) as raised:
        function(given)
    assert raised.value.exit_code == 2
    assert fix in raised.value.fix


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1], [1, 2]], "cannot be read as an array"),
        ([["a"], ["b"]], "expected real numbers"),
        ([[1j], [2]], "expected real numbers"),
        ([[1e300], [1]], r"x holds 1e\+300, more than float32 can have"),
        (None, r"x has the shape \[\]"),
        (np.empty((0, 3)), "x has no rows"),
    ],
)
def test_embeddings_have_to_be_finite_real_numbers(x, message):
    with pytest.raises(fl.FlamestError, match=message) as raised:
        fl.Features.from_arrays(x, ["a", "b"])
    assert raised.value.exit_code == 65
    assert raised.value.fix


def test_a_model_refuses_rows_that_are_not_finite(given):
    with pytest.raises(fl.FlamestError, match="features holds NaN or infinity"):
        given.run.model.classify(np.full((2, 24), np.nan))


@pytest.mark.parametrize(
    "y",
    [
        ["a", None, float("nan"), b"b", ""],
        np.array(["a", None, np.nan, b"b", ""], dtype=object),
        [b"a", -1, np.float64("nan"), "b", None],
    ],
)
def test_missing_labels_are_unknown_and_bytes_are_text(y):
    assert fl.Features.from_arrays(np.eye(5), y).names == ["a", "", "", "b", ""]


@pytest.mark.parametrize("y", [np.array([-1, 0, 1]), np.array([np.nan, 0.0, 1.0]), np.array([-1.0, 0.0, 1.0])])
def test_the_number_of_an_unknown_class_is_no_class(y):
    assert fl.Features.from_arrays(np.eye(3), y).y.tolist() == [-1, 0, 1]


def test_a_clip_without_a_group_is_its_own():
    f = fl.Features.from_arrays(np.eye(4), Y, groups=[None, "g", "g", ""], clips=["k", "l", "m", None])
    assert f.groups == ("k", "g", "g", "row-000003")


def test_arrays_are_copied():
    x = np.ones((2, 3), np.float32)
    f = fl.Features.from_arrays(x, ["a", "b"])
    x[:] = 0
    assert f.x.all()


def test_a_run_predicts_as_its_model(given, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    (found,) = fl.predict(
        [tmp_path / "broken.mp4"],
        model=fl.train(fl.load("miniworld"), rounds=1, epochs=1, progress=False),
        bundle="miniworld",
        progress=False,
    )
    assert found.reason


@pytest.mark.parametrize(("setting", "value"), [("hidden", (0,)), ("common", 0)])
def test_a_width_of_nothing_is_refused_with_widths_to_write(setting, value):
    with pytest.raises(fl.FlamestError, match=setting) as raised:
        fl.train(fl.load("miniworld"), head="rgcf", rounds=1, progress=False, **{setting: value})
    assert "hidden=(512, 256)" in raised.value.fix
