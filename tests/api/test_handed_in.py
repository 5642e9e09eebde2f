"""Strategies and heads that are handed in: the same path as the built-in ones, and errors where they are wrong."""

from __future__ import annotations

import threading

import flamest as fl
import numpy as np
import pytest
from flamest.fedproto.head import HeadSpec

QUICK = {"recipe": "paper", "rounds": 3, "epochs": 2, "batch_size": 16, "progress": False}


def mean(model, updates):
    """FedAvg: the weighted mean in float64."""
    total = sum(update.examples for update in updates)
    return {name: sum(u.examples * u.params[name].astype(np.float64) for u in updates) / total for name in model}


class Momentum:
    """FedAvgM."""

    def __init__(self):
        self.velocity = None

    def __call__(self, model, updates):
        step = {name: model[name] - tensor for name, tensor in mean(model, updates).items()}
        old = self.velocity or dict.fromkeys(model, 0.0)
        self.velocity = {name: 0.5 * old[name] + step[name] for name in model}
        return {name: model[name] - self.velocity[name] for name in model}


class Layers:
    """The built-in perceptron with one hidden layer, by hand."""

    def __init__(self, inputs, classes):
        self.shapes = {"0.weight": (8, inputs), "0.bias": (8,), "1.weight": (classes, 8), "1.bias": (classes,)}

    def initial(self, random):
        bounds = {name: 1 / np.sqrt(self.shapes[name[:2] + "weight"][1]) for name in self.shapes}
        return {name: random.uniform(-bounds[name], bounds[name], shape) for name, shape in self.shapes.items()}

    def forward(self, params, x):
        hidden = np.maximum(x @ params["0.weight"].T + params["0.bias"], 0)

        def gradients(of_scores):
            of_hidden = (of_scores @ params["1.weight"]) * (hidden > 0)
            weights = {"0.weight": of_hidden.T @ x, "1.weight": of_scores.T @ hidden}
            return weights | {"0.bias": of_hidden.sum(axis=0), "1.bias": of_scores.sum(axis=0)}

        return hidden @ params["1.weight"].T + params["1.bias"], gradients


@pytest.mark.parametrize(("own", "name"), [(mean, "fedavg"), (Momentum, "fedavgm"), (Momentum(), "fedavgm")])
def test_an_aggregation_handed_in_gives_the_bits_of_the_built_in_one(split, own, name):
    silos, test = split
    expected = fl.simulate(silos, test=test, strategy=name, hidden=(8,), **QUICK)
    for _ in range(2):  # no run continues with the state of another
        run = fl.simulate(silos, test=test, strategy=own, hidden=(8,), **QUICK)
        assert run.sha256 == expected.sha256
        assert run.evaluations == expected.evaluations


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_terms_of_the_silos_and_codecs_go_with_an_own_aggregation(split, codec):
    silos, _ = split
    expected = fl.simulate(silos, strategy="fedprox", mu=0.1, average_last=2, codec=codec, hidden=(8,), **QUICK)
    run = fl.simulate(silos, strategy=mean, mu=0.1, average_last=2, codec=codec, hidden=(8,), **QUICK)
    assert run.sha256 == expected.sha256


def test_an_aggregation_gets_updates_in_order_that_it_cannot_change(split):
    silos, _ = split
    seen = []

    def look(model, updates):
        seen.append([(update.silo, update.examples) for update in updates])
        assert all(not array.flags.writeable for array in (*model.values(), *updates[0].params.values()))
        return model

    run = fl.simulate(silos, strategy=look, hidden=(8,), **QUICK)
    assert seen == [[(name, len(silo)) for name, silo in silos.items()]] * 3
    assert run.strategy == "look"


def test_a_model_file_names_a_strategy_that_was_handed_in(split, tmp_path):
    silos, _ = split
    fl.simulate(silos, strategy=mean, hidden=(8,), **QUICK).save(tmp_path / "own.safetensors")
    assert fl.load_model(tmp_path / "own.safetensors").metadata["own_strategy"] == "mean"
    assert "own_strategy" not in fl.simulate(silos, hidden=(8,), **QUICK).model.metadata
    assert fl.simulate(silos, head=Layers, **QUICK).model.metadata["own_head"] == "Layers"


class NotCallable:
    """A class that is no strategy."""


class Locked(Momentum):
    """A strategy that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("own", "message", "fix"),
    [
        (NotCallable, "NotCallable is no strategy", "__call__"),
        (Locked(), "Locked cannot be copied", "strategy=Locked"),
    ],
)
def test_a_class_or_object_that_is_no_strategy_is_refused(split, own, message, fix):
    silos, _ = split
    with pytest.raises(fl.FlamestError, match=message) as raised:
        fl.simulate(silos, strategy=own, **QUICK)
    assert fix in raised.value.fix


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda model: 3, "it returned int"),
        (lambda model: {"0.weight": model["0.weight"]}, "tensors"),
        (lambda model: {name: array[:1] for name, array in model.items()}, "0.weight is float32"),
        (lambda model: {name: array * np.nan for name, array in model.items()}, "NaN or infinity"),
        (lambda model: dict.fromkeys(model, "x"), "could not convert"),
    ],
)
def test_an_aggregation_that_returns_no_model_is_refused(split, returned, message):
    silos, _ = split
    with pytest.raises(fl.FlamestError, match=message) as raised:
        fl.simulate(silos, strategy=lambda model, _: returned(model), hidden=(8,), **QUICK)
    assert raised.value.code == "bad_aggregation"
    assert raised.value.fix


def test_a_head_handed_in_trains_as_the_built_in_one(split):
    silos, test = split
    settings = {"strategy": "fedprox", "mu": 0.05, "class_balanced": True, "seed": 2, **QUICK}
    own = fl.simulate(silos, test=test, head=Layers, **settings)
    built_in = fl.simulate(silos, test=test, hidden=(8,), **settings)
    for name, tensor in built_in.params.items():
        assert np.allclose(own.params[name], tensor, atol=1e-4), name
    assert own.accuracy == built_in.accuracy
    assert own.bytes_per_silo_round == built_in.bytes_per_silo_round


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "sparse_int8"])
def test_a_head_handed_in_is_repeatable_with_any_workers_and_codec(split, codec):
    silos, test = split
    runs = [fl.simulate(silos, test=test, head=Layers, codec=codec, workers=count, **QUICK) for count in (1, 3)]
    assert runs[0].sha256 == runs[1].sha256
    assert runs[0].accuracy > 0.4


def test_a_head_may_be_an_object_and_trains_without_a_federation(split):
    silos, test = split
    run = fl.train(silos, test=test, head=Layers(24, 5), **QUICK)
    assert run.sha256 == fl.train(silos, test=test, head=Layers, **QUICK).sha256
    assert run.model.accuracy(test) == run.accuracy
    with pytest.raises(fl.FlamestError, match="a model file describes a built-in head") as raised:
        run.save("model.safetensors")
    assert "numpy.savez" in raised.value.fix


class Wrong(Layers):
    """Half of one gradient."""

    def forward(self, params, x):
        scores, gradients = super().forward(params, x)
        return scores, lambda given: gradients(given) | {"0.weight": gradients(given)["0.weight"] / 2}


class Inexact(Wrong):
    """The same on purpose."""

    exact_gradients = False


class Rounded(Layers):
    """Computes in float32 whatever it is given."""

    def forward(self, params, x):
        scores, gradients = super().forward(
            {name: tensor.astype(np.float32) for name, tensor in params.items()}, x.astype(np.float32)
        )
        return scores.astype(np.float32), gradients


class WrongShape(Layers):
    """A gradient of another shape."""

    def forward(self, params, x):
        scores, gradients = super().forward(params, x)
        return scores, lambda given: gradients(given) | {"1.bias": np.zeros(2)}


class NoScores(Layers):
    """Scores of another shape."""

    def forward(self, params, x):
        return x, lambda given: {}


def changed(**methods):
    """Return ``Layers`` with other methods."""
    return type("Changed", (Layers,), methods)


def of_shape(shape):
    return changed(__init__=lambda self, inputs, classes: setattr(self, "shapes", {"b": shape}))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            changed(forward=lambda self, params, x: x @ np.ones((24, 5))),
            "forward returned ndarray, expected the scores",
        ),
        (changed(forward=lambda self, params, x: None), "forward returned NoneType"),
        (changed(forward=lambda self, params, x: (np.zeros((5, 5)), lambda _: None)), "its gradients are NoneType"),
        (changed(forward=lambda self, params, x: (np.zeros((5, 5), int), None)), "forward returned a tuple of"),
        (changed(initial=lambda self, random: None), "initial returned NoneType"),
        (changed(initial=lambda self, random: {"0.weight": 3}), "what initial returned: tensors"),
        (
            changed(initial=lambda self, random: {name: np.full(s, np.nan) for name, s in self.shapes.items()}),
            "what initial returned: 0.weight holds NaN",
        ),
        (of_shape(3), r"the shape of 'b' is 3, expected a tuple"),
        (of_shape(("a",)), "expected a tuple"),
        (Wrong, "its gradients give the loss a slope of"),
        (WrongShape, "its gradients have the shapes"),
        (NoScores, r"forward returned scores of shape \(5, 24\), expected \(5, 5\)"),
        (lambda inputs, classes: object(), "it needs a mapping 'shapes' and a method forward"),
        (type("Empty", (Layers,), {"__init__": lambda self, *_: setattr(self, "shapes", {})}), "shapes are {}"),
    ],
)
def test_a_head_that_is_wrong_is_an_error_before_training(split, head, message):
    silos, _ = split
    with pytest.raises(fl.FlamestError, match=message) as raised:
        fl.simulate(silos, head=head, **QUICK)
    assert raised.value.code == "bad_own_head"
    assert raised.value.fix
    assert "learning rate" not in raised.value.fix


def test_an_error_of_what_is_handed_in_passes_through(split):
    silos, _ = split

    def forgotten(model, updates):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fl.simulate(silos, strategy=forgotten, hidden=(8,), **QUICK)


def test_gradients_in_float32_or_inexact_on_purpose_are_accepted(split):
    silos, _ = split
    for head in (Rounded, Inexact):
        fl.simulate(silos, head=head, **(QUICK | {"rounds": 1}))


def test_a_head_record_has_to_fit_the_features(split):
    silos, _ = split
    run = fl.simulate(silos, head=HeadSpec(24, 5, (4,)), **QUICK)
    assert run.settings.head.hidden == (4,)
    with pytest.raises(fl.FlamestError, match="takes 7-d embeddings to 5 classes"):
        fl.simulate(silos, head=HeadSpec(7, 5), **QUICK)
