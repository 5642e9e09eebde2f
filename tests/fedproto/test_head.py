"""Heads and settings: their layout, and that older runs keep their bytes."""

import msgspec
import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.model_file import ModelFile, read_model, write_model
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings, decode_run_settings

RGCF = HeadSpec(10, 3, (5,), "rgcf", (4, 6), standardise=True, common=2)
OLD = RunSettings("r", ("x", "y"), HeadSpec(3, 2, (4,)), 7, 2, 12.5, "f", seed=9, strategy=Strategy("fedprox", mu=0.5))
OLD_BYTES = (
    b'{"run":"r","labels":["x","y"],"head":{"inputs":3,"outputs":2,"hidden":[4],"kind":"mlp"},"rounds":7,'
    b'"min_silos":2,"deadline_s":12.5,"fingerprint":"f","seed":9,"strategy":{"name":"fedprox","mu":0.5},'
    b'"train":{"epochs":5,"batch_size":128,"learning_rate":0.01,"weight_decay":0.0001}}'
)


def test_options_at_their_default_are_not_in_the_settings_bytes():
    assert OLD.encode() == OLD_BYTES
    assert decode_run_settings(OLD_BYTES) == OLD


def test_every_option_survives_the_settings():
    run = msgspec.structs.replace(
        OLD,
        labels=("x", "y", "z"),
        head=RGCF,
        strategy=Strategy("feddyn", alpha=0.25, average_last=3),
        train=TrainSettings(learning_rate_decay=0.5, class_balanced=True),
    )
    assert decode_run_settings(run.encode()) == run
    assert run.sha256 != OLD.sha256


def test_the_papers_head_keeps_its_names_and_initial_values():
    spec = HeadSpec(6, 3, (4,))
    assert list(spec.shapes) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    bound = np.sqrt(1 / 6)
    expected = np.random.Generator(np.random.PCG64(5)).uniform(-bound, bound, size=(4, 6)).astype(np.float32)
    assert (initial_params(spec, 5)["0.weight"] == expected).all()
    assert HeadSpec(2816, 101).parameters == 1_599_589


def test_softmax_regression_is_a_head():
    assert HeadSpec(6, 3, ()).shapes == {"0.weight": (3, 6), "0.bias": (3,)}


def test_a_gated_head_has_its_projections_before_the_perceptron():
    assert RGCF.shapes == {
        "v.weight": (2, 4),
        "v.bias": (2,),
        "v.gate.weight": (2, 4),
        "v.gate.bias": (2,),
        "v.carry.weight": (2, 2),
        "v.carry.bias": (2,),
        "t.weight": (2, 6),
        "t.bias": (2,),
        "t.gate.weight": (2, 4),
        "t.gate.bias": (2,),
        "t.carry.weight": (2, 2),
        "t.carry.bias": (2,),
        "0.weight": (5, 4),
        "0.bias": (5,),
        "1.weight": (3, 5),
        "1.bias": (3,),
    }


def test_a_gated_head_survives_its_model_file(tmp_path):
    params = initial_params(RGCF, 1)
    write_model(tmp_path / "m", ModelFile(RGCF, params, ("x", "y", "z"), "f"))
    model = read_model(tmp_path / "m")
    assert model.head == RGCF
    assert params_sha256(model.params) == params_sha256(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (4, 5)}, r"blocks \[4, 5\]: expected widths that add up to inputs = 10"),
        ({"blocks": (11, -1)}, "blocks"),
        ({"kind": "rgcf"}, "exactly two blocks, there are 0"),
        ({"kind": "rgcf", "blocks": (2, 3, 5)}, "exactly two blocks, there are 3"),
        ({"common": 0}, "common: expected 1 or more"),
    ],
)
def test_contradictory_head_options_are_refused(options, message):
    with pytest.raises(DataError, match=message) as refused:
        HeadSpec(10, 3, **options)
    assert refused.value.code == "bad_head"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"mu":0.5', b'"mu":0.0'),
        (b'"mu":0.5', b'"mu":0.5,"alpha":0.1'),
        (b'"name":"fedprox","mu":0.5', b'"name":"feddyn"'),
        (b'"epochs":5', b'"epochs":0'),
        (b'"kind":"mlp"', b'"kind":"rgcf"'),
    ],
)
def test_settings_that_silos_cannot_train_with_are_refused(old, new):
    assert old in OLD_BYTES
    with pytest.raises(DataError):
        decode_run_settings(OLD_BYTES.replace(old, new))


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "\u202egnp", "\x9b31m"])
def test_unprintable_names_are_refused_and_shown_escaped(name):
    for changes in ({"run": name}, {"labels": ("x", name)}, {"fingerprint": name}):
        with pytest.raises(DataError, match="cannot be printed") as refused:
            decode_run_settings(msgspec.structs.replace(OLD, **changes).encode())
        assert refused.value.code == "bad_settings"
        assert refused.value.message.isprintable()
    with pytest.raises(DataError, match="cannot be read") as refused:
        decode_run_settings(msgspec.json.encode({name: 1}))
    assert refused.value.message.isprintable()
    good = msgspec.structs.replace(OLD, labels=("läuft", "走る 1"))
    assert decode_run_settings(good.encode()) == good


def test_zero_start_is_for_a_head_without_hidden_layers():
    linear = HeadSpec(4, 3, (), start="zero")
    assert all(not tensor.any() for tensor in initial_params(linear, 5).values())
    with pytest.raises(DataError, match="start 'zero': expected hidden = "):
        HeadSpec(4, 3, (8,), start="zero")
    with pytest.raises(DataError, match="start 'zero'"):
        HeadSpec(32, 3, (), "rgcf", (11, 21), start="zero")
