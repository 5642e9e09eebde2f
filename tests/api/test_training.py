"""Simulations and trainings of the Python API: equal to daemons and commands, settings, what is handed in."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import flamest as fl
import msgspec
import numpy as np
import pytest
from flamest.agent.daemon import run_agent
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.settings import load_agent_settings
from flamest.agent.training.local import LocalRequest, train_from_store
from flamest.base.files import sha256_bytes
from flamest.base.process import Shutdown
from flamest.experiments.simulation import SimulatedSilo
from flamest.experiments.simulation import simulate as simulate_run
from flamest.fedproto.head import HeadSpec, params_sha256
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings
from flamest.runtime.clip_records import Clip

QUICK = {"recipe": "paper", "rounds": 3, "epochs": 2, "batch_size": 16, "hidden": (16, 8), "progress": False}
LABELS = ("fall", "run", "walk")  # make_federation's
SIZES = {"anna": 31, "berta": 50, "carla": 12}


def fill_store(path: Path, silo: str, count: int) -> None:
    random = np.random.default_rng(list(silo.encode()))
    rows = []
    for row in range(count):
        clip = Clip(Path(f"{row}.mp4"), sha256_bytes(f"{silo}/{row}".encode()), LABELS[row % 3], f"g{row // 4}")
        rows.append(
            (f"{row}.mp4", FeatureRow(clip, random.normal(size=24).astype(np.float32), 8, "fingerprint", "fp32"))
        )
    with FeatureStore.open(path) as store:
        store.add_rows(rows)


def agent_file(folder: Path, link) -> Path:
    keys = {"address": link.address, "ca": str(link.ca), "certificate": str(link.certificate), "key": str(link.key)}
    coordinator = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
    policy = "min_samples = 1\nmin_samples_override = true\nhold_out = 0.0"
    text = f'state = "state"\nstore = "features.sqlite"\n[coordinator]\n{coordinator}\n[policy]\n{policy}\n'
    (folder / "agent.toml").write_text(text + "[work]\nthreads = 1\n")
    return folder / "agent.toml"


def test_a_simulated_run_ends_in_the_model_of_real_daemons(make_federation, tmp_path):
    run = {"inputs": 24, "hidden": [16, 8], "rounds": 3, "min_silos": 3, "wanted": 3, "seed": 7, "batch_size": 16}
    federation = make_federation(*SIZES, **run, epochs=2, examples_times=0)
    federation.start(once=True)
    agents = []
    for name, count in SIZES.items():
        (tmp_path / name).mkdir()
        fill_store(tmp_path / name / "features.sqlite", name, count)
        loaded = load_agent_settings(agent_file(tmp_path / name, federation.connection_settings(name)))
        agents.append(threading.Thread(target=run_agent, args=(loaded, name, Shutdown()), kwargs={"once": True}))
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join(60)
    federation.join()
    silos = {name: fl.load(tmp_path / name / "features.sqlite") for name in SIZES}
    simulated = fl.simulate(silos, seed=7, **QUICK)
    assert simulated.sha256 == federation.rounds()[-1]["model_sha256"]
    assert fl.simulate(silos, seed=8, **QUICK).sha256 != simulated.sha256


def test_the_apis_run_is_that_of_the_experiments_simulation(split):
    silos, test = split
    run = fl.simulate(silos, test=test, strategy="fedprox", mu=0.01, seed=5, codec="int8", **QUICK)
    settings = RunSettings(
        run="any",
        labels=test.labels,
        head=HeadSpec(24, 5, (16, 8)),
        rounds=3,
        min_silos=4,
        deadline_s=60.0,
        fingerprint=test.fingerprint,
        seed=5,
        strategy=Strategy("fedprox", mu=0.01),
        train=TrainSettings(epochs=2, batch_size=16),
        codec="int8",
    )
    parts = [SimulatedSilo(name, silo.table(test.labels)) for name, silo in silos.items()]
    expected = simulate_run(settings, parts, test=test.table(test.labels))
    assert run.sha256 == expected.sha256
    assert run.evaluations == expected.rounds
    assert run.bytes_per_silo_round == expected.bytes_per_silo_round
    assert (
        fl.simulate(silos, test=test, strategy="fedprox", seed=5, codec="int8", workers=1, **QUICK).sha256 == run.sha256
    )


def test_training_is_that_of_the_command(tmp_path):
    fill_store(tmp_path / "features.sqlite", "anna", 60)
    request = LocalRequest(
        store=tmp_path / "features.sqlite",
        fingerprint=None,
        precision=None,
        recipe="paper",
        given={"hidden": (16, 8), "train": {"epochs": 2, "batch_size": 16}},
        rounds=3,
        hold_out=0.2,
        seed=4,
        threads=1,
    )
    figures = train_from_store(request, tmp_path / "model.safetensors")
    silos, test = fl.split(fl.load(tmp_path / "features.sqlite"), silos=1, seed=4, partition="iid")
    run = fl.train(silos["silo-1"], test=test, seed=4, threads=1, **QUICK)
    assert run.sha256 == params_sha256(fl.load_model(tmp_path / "model.safetensors").params)
    assert run.accuracy == figures["accuracy"]
    assert run.best == figures["best_accuracy"]


def test_centralised_training_uses_the_rows_of_all_silos(split):
    silos, test = split
    central = fl.train(silos, test=test, threads=1, **QUICK)
    assert central.examples == {"centralised": 160}
    assert central.sha256 == fl.train(silos.union, test=test, threads=1, **QUICK).sha256
    assert central.strategy == "centralised"
    assert fl.train(silos["silo-1"], **QUICK).examples == {"local": len(silos["silo-1"])}
    assert central.accuracy > 0.5
    assert central.bytes_per_silo_round == 0


def test_figures_of_a_run_agree_with_each_other(split):
    silos, test = split
    run = fl.simulate(silos, test=test, **QUICK)
    assert run.accuracy == run.curve[-1] == run.confusion.trace() / 40
    assert run.best == max(run.curve)
    assert run.confusion.sum(axis=1).tolist() == list(test.counts().values())
    assert run.history[-1]["accuracy"] == run.accuracy
    assert run.by_class == {label: run.confusion[k, k] / 8 for k, label in enumerate(run.labels)}
    assert run.examples == {name: len(silo) for name, silo in silos.items()}
    shares = {name: np.array(list(silo.counts().values())) / len(silo) for name, silo in silos.items()}
    expected = {name: float(share @ list(run.by_class.values())) for name, share in shares.items()}
    assert run.by_silo == pytest.approx(expected)
    lines = repr(run).splitlines()
    assert lines[0].startswith("Run: fedavg, 3 rounds, 4 silos, ")
    assert lines[1].startswith(f"accuracy {run.accuracy:.3f} on 40 test clips")
    assert len(lines[2].split()[1]) == 3


def test_a_run_without_test_clips_has_a_model_and_no_accuracy(split):
    silos, _ = split
    run = fl.simulate(silos, **QUICK)
    assert "not measured" in repr(run)
    assert run.history == []
    with pytest.raises(fl.FlamestError, match="it had no test clips") as raised:
        run.accuracy  # noqa: B018
    assert raised.value.fix == "give it some, as test=test"


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("fedavg", {}, Strategy()),
        ("fedprox", {}, Strategy("fedprox", mu=0.01)),
        ("fedprox", {"mu": 1}, Strategy("fedprox", mu=1.0)),
        ("feddyn", {}, Strategy("feddyn", alpha=0.01)),
        ("fedavgm", {}, Strategy(server_momentum=0.5)),
        ("fedadam", {"server_tau": 0.01}, Strategy(server_adam=0.01, server_tau=0.01)),
        ("median", {"clip": 2.0}, Strategy(combine="median", clip=2.0)),
        ("trimmed_mean", {}, Strategy(combine="trimmed_mean", trim=0.25)),
        (Strategy("fedprox", mu=0.2), {}, Strategy("fedprox", mu=0.2)),
    ],
)
def test_short_names_stand_for_the_settings_of_a_strategy(split, name, settings, expected):
    silos, _ = split
    run = fl.simulate(silos, strategy=name, **settings, **(QUICK | {"rounds": 1}))
    assert run.settings.strategy == expected


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        (
            {"strategy": "fedprx"},
            "there is no strategy 'fedprx'; did you mean fedprox?",
            "known: fedavg, fedprox, feddyn",
        ),
        ({"learning_rat": 0.1}, "there is no setting 'learning_rat'; did you mean learning_rate?", "known: mu, alpha"),
        ({"strategy": "fedadam", "server_adam": 0.0}, "server_adam=0.0 is not fedadam", "strategy='fedavg'"),
        ({"strategy": "fedavgm", "server_momentum": 0}, "server_momentum=0.0 is not fedavgm", "strategy='fedavg'"),
        ({"strategy": "median", "combine": "mean"}, "combine='mean' is not median", "strategy='fedavg'"),
        ({"strategy": "trimmed_mean", "combine": "median"}, "combine='median' is not trimmed_mean", "='median'"),
        ({"combine": "median"}, "combine='median' is not fedavg, but median", "strategy='median'"),
        ({"server_adam": 0.1}, "server_adam=0.1 is not fedavg, but fedadam", "strategy='fedadam'"),
        ({"strategy": "trimmed_mean", "trim": 0.2}, "0.2 of 4 silos leaves nobody out", "a larger trim"),
        ({"strategy": []}, "there is no strategy []", "known: fedavg"),
        ({"mu": 0.1}, "mu: fedavg has none; expected 0, or strategy='fedprox'", "strategies.md"),
        ({"strategy": "feddyn", "clip": 1.0}, "clip: not with feddyn", "strategies.md"),
        ({"strategy": "fedprox", "mu": "much"}, "Expected 'float', got 'str' - at 'mu'", ""),
        ({"strategy": Strategy(), "mu": 0.1}, "mu: given next to a strategy record", ""),
        ({"strategy": lambda model, _: model, "trim": 0.1}, "trim: not with a strategy of one's own", "with it go mu"),
        ({"rounds": 0}, "rounds: expected 1 to 100,000", ""),
        ({"seed": 0.5}, "seed is 0.5, expected a whole number", ""),
        ({"codec": "fp8"}, "there is no codec 'fp8'; known: fp32, fp16", ""),
        ({"head": "cnn"}, "there is no head 'cnn'; known: mlp, rgcf", "python-api.md"),
        ({"head": "rgcf"}, "the head rgcf fuses two parts", "blip"),
        ({"head": HeadSpec(7, 5), "hidden": ()}, "hidden: settings of the heads mlp and rgcf", ""),
        ({"hidden": ("a",)}, "Expected 'int', got 'str' - at 'hidden[0]'", ""),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_known_ones(split, arguments, message, fix):
    silos, _ = split
    arguments = {"rounds": 1, "progress": False} | arguments
    with pytest.raises(fl.FlamestError) as raised:
        fl.simulate(silos, **arguments)
    assert message in raised.value.message
    assert fix in raised.value.fix
    assert raised.value.exit_code == 2


def test_a_trimmed_mean_that_trims_nobody_names_the_least_share(split):
    silos, _ = split
    three = {name: silos[name] for name in list(silos)[:3]}
    with pytest.raises(fl.FlamestError, match=r"trim: 0\.25 of 3 silos .*; expected 0\.34 or more"):
        fl.simulate(three, strategy="trimmed_mean", **QUICK)
    fl.simulate(three, strategy="trimmed_mean", trim=0.34, **QUICK)
    with pytest.raises(fl.FlamestError, match="expected 3 or more silos"):
        fl.simulate([silos[0], silos[1]], strategy="trimmed_mean", trim=0.49, **QUICK)


def test_settings_may_be_numpys_numbers(split):
    silos, _ = split
    numbers = {"rounds": np.int64(1), "batch_size": np.int32(16), "hidden": (np.int64(8),), "mu": np.float32(0.5)}
    run = fl.simulate(silos, strategy="fedprox", progress=False, **numbers)
    plain = fl.simulate(silos, strategy="fedprox", progress=False, rounds=1, batch_size=16, hidden=(8,), mu=0.5)
    assert run.settings == plain.settings


def test_features_that_do_not_fit_each_other_are_refused(features, split):
    silos, _ = split
    other = fl.Features.from_arrays(features.x, features.names, name="other")
    for arguments, message in (
        (({"a": features, "b": other},), "features of different kinds cannot be mixed"),
        ((features,), "silos: expected the features of one or more silos"),
        (({},), "silos: expected the features of one or more silos"),
        (([features[:0], features],), "silo 'silo-1' has no labelled clip"),
    ):
        with pytest.raises(fl.FlamestError, match=message):
            fl.simulate(*arguments, **QUICK)
    with pytest.raises(fl.FlamestError, match="features of different kinds"):
        fl.simulate(silos, test=other, **QUICK)


def test_silos_with_other_classes_share_the_names_of_all(features):
    few = fl.Features.from_arrays(features.x[:40], ["zebra" if y else "apple" for y in features.y[:40]])
    run = fl.simulate([features, few], **QUICK)
    assert run.labels == (*sorted(["apple", *features.labels]), "zebra")
    assert run.class_counts[1].tolist() == [8, 0, 0, 0, 0, 0, 32]


def test_rgcf_and_standardise_take_the_parts_of_the_bundle(extracted):
    f, _ = extracted
    fused = fl.train(f, head="rgcf", common=8, hidden=(8,), recipe="paper", rounds=1, epochs=1, progress=False)
    assert fused.settings.head == HeadSpec(384, 4, (8,), "rgcf", (128, 256), common=8)
    level = fl.train(f, standardise=True, hidden=(), recipe="paper", rounds=1, epochs=1, progress=False)
    assert level.settings.head == HeadSpec(384, 4, (), blocks=(128, 256), standardise=True)


def test_progress_is_shown_unless_it_is_switched_off(split, capsys):
    silos, _ = split
    fl.simulate(silos, **(QUICK | {"progress": True}))
    assert "simulating: 3/3 rounds" in capsys.readouterr().err
    fl.simulate(silos, **QUICK)
    assert capsys.readouterr().err == ""


def test_settings_of_a_run_can_be_sent_to_silos(split):
    silos, _ = split
    run = fl.simulate(silos, seed=np.int64(3), **QUICK)
    assert run.settings.problems() == []
    assert msgspec.json.decode(run.settings.encode())["seed"] == 3
