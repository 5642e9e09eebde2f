"""A simulated run compared with a real one, and inputs that the simulation refuses."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from flamest.agent.daemon import run_agent
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.settings import load_agent_settings
from flamest.agent.training.dataset import FeatureTable, silo_data
from flamest.base.errors import DataError
from flamest.base.files import sha256_bytes
from flamest.base.process import Shutdown
from flamest.experiments.simulation import SimulatedSilo, simulate
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings
from flamest.runtime.clip_records import Clip

LABELS = ("fall", "run", "walk")  # make_federation's
WIDTH = 24
SIZES = {"anna": 31, "berta": 70, "carla": 12}  # unequal, not multiples of the batch
ROUNDS = 3


def rows(silo: str, count: int, width: int = WIDTH) -> FeatureTable:
    random = np.random.default_rng(list(silo.encode()))
    x = random.normal(size=(count, width)).astype(np.float32)
    return FeatureTable(x, random.integers(0, len(LABELS), count))


def settings(**changes: object) -> RunSettings:
    run = RunSettings(
        run="simulated",
        labels=LABELS,
        head=HeadSpec(WIDTH, len(LABELS), (16, 8)),
        rounds=ROUNDS,
        min_silos=1,
        deadline_s=60.0,
        fingerprint="fingerprint",
        seed=7,
        train=TrainSettings(epochs=2, batch_size=16),
    )
    return msgspec.structs.replace(run, **changes)


def silos_of(sizes: dict[str, int] = SIZES) -> list[SimulatedSilo]:
    return [SimulatedSilo(name, rows(name, count)) for name, count in sizes.items()]


def fill_store(path: Path, silo: str, count: int) -> None:
    table = rows(silo, count)
    with FeatureStore.open(path) as store:
        store.add_rows(
            (
                f"{row}.mp4",
                FeatureRow(
                    Clip(Path(f"{row}.mp4"), sha256_bytes(f"{silo}/{row}".encode()), LABELS[y], f"group-{row // 4}"),
                    x,
                    8,
                    "fingerprint",
                    "fp32",
                ),
            )
            for row, (x, y) in enumerate(zip(table.x, table.y, strict=True))
        )


def agent_file(folder: Path, federation, silo: str, *, hold_out: float) -> Path:
    """agent.toml of a silo with a filled store."""
    link = federation.connection_settings(silo)
    text = f"""
state = "state"
store = "features.sqlite"
[coordinator]
address = {json.dumps(link.address)}
ca = {json.dumps(str(link.ca))}
certificate = {json.dumps(str(link.certificate))}
key = {json.dumps(str(link.key))}
[policy]
min_samples = 1
min_samples_override = true
hold_out = {hold_out}
[work]
threads = 1
"""
    (folder / "agent.toml").write_text(text)
    return folder / "agent.toml"


def real_run(federation, folder: Path, *, hold_out: float) -> tuple[str, list[SimulatedSilo], RunSettings]:
    """Run daemons over mutual TLS; returns the final model's hash, and silos and settings for a simulation."""
    federation.start(once=True)
    run = federation.settings().run_settings()
    silos, agents = [], []
    for name, count in SIZES.items():
        home = folder / name
        home.mkdir(parents=True)
        fill_store(home / "features.sqlite", name, count)
        with FeatureStore.open(home / "features.sqlite", read_only=True, create=False) as store:
            data = silo_data(store.read(), run.labels, hold_out=hold_out, seed=run.seed)
        silos.append(SimulatedSilo(name, data.train))
        loaded = load_agent_settings(agent_file(home, federation, name, hold_out=hold_out))
        agents.append(threading.Thread(target=run_agent, args=(loaded, name, Shutdown()), kwargs={"once": True}))
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join(60)
    federation.join()
    return federation.rounds()[-1]["model_sha256"], silos, run


@pytest.mark.parametrize("hold_out", [0.0, 0.25], ids=["all rows", "groups held out"])
def test_a_simulated_and_a_real_run_end_in_the_same_model(make_federation, tmp_path, hold_out):
    federation = make_federation(
        *SIZES,
        inputs=WIDTH,
        hidden=[16, 8],
        rounds=ROUNDS,
        min_silos=3,
        wanted=3,
        seed=7,
        batch_size=16,
        epochs=2,
        examples_times=0,
    )
    real, silos, run = real_run(federation, tmp_path / "homes", hold_out=hold_out)
    assert [len(silo.train) < SIZES[silo.name] for silo in silos] == [hold_out > 0] * len(silos)
    assert simulate(run, silos).sha256 == real
    assert simulate(msgspec.structs.replace(run, seed=8), silos).sha256 != real


@pytest.mark.parametrize("workers", [2, 8])
def test_the_result_does_not_depend_on_the_number_of_workers(workers):
    test = rows("test", 40)
    alone, together = (simulate(settings(), silos_of(), test=test, workers=count) for count in (1, workers))
    assert together.sha256 == alone.sha256
    assert together.rounds == alone.rounds


STRATEGIES = {
    "fedprox": Strategy("fedprox", mu=0.1),
    "feddyn": Strategy("feddyn", alpha=0.1),
    "momentum": Strategy(server_momentum=0.9),
    "tail": Strategy(average_last=2),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_its_own_model_with_any_number_of_workers(strategy):
    run = settings(strategy=STRATEGIES[strategy])
    alone, together = (simulate(run, silos_of(), workers=count).sha256 for count in (1, 3))
    assert alone == together != simulate(settings(), silos_of()).sha256


def test_the_result_does_not_depend_on_the_order_of_the_silos():
    assert simulate(settings(), silos_of()[::-1]).sha256 == simulate(settings(), silos_of()).sha256


def test_every_round_is_evaluated_and_reported():
    reported: list[int] = []
    run = simulate(settings(), silos_of(), test=rows("test", 40), on_round=reported.append)
    assert reported == [1, 2, 3]
    assert [evaluation.count for evaluation in run.rounds] == [40] * 3
    assert len({evaluation.loss for evaluation in run.rounds}) == 3
    assert simulate(settings(), silos_of()).rounds == ()


def test_bytes_per_round_are_the_model_down_and_the_update_up():
    head = settings().head
    assert simulate(settings(rounds=1), silos_of()).bytes_per_silo_round == 2 * 4 * head.parameters


def test_a_silo_that_diverges_ends_the_simulation_with_its_error():
    wild = settings(train=TrainSettings(learning_rate=1e30))
    with pytest.raises(DataError) as raised:
        simulate(wild, silos_of(), workers=2)
    assert raised.value.code == "diverged"


def wrong_class(table: FeatureTable) -> FeatureTable:
    return FeatureTable(table.x, np.full_like(table.y, len(LABELS)))


@pytest.mark.parametrize(
    ("silos", "code"),
    [
        ([], "bad_silos"),
        ([SimulatedSilo("a", rows("a", 5)), SimulatedSilo("a", rows("b", 5))], "bad_silos"),
        ([SimulatedSilo("a", rows("a", 0))], "empty_silo"),
        ([SimulatedSilo("a", rows("a", 5, width=WIDTH + 1))], "bad_table"),
        ([SimulatedSilo("a", wrong_class(rows("a", 5)))], "bad_table"),
    ],
    ids=["none", "twice the same name", "no rows", "another width", "a class beyond the head"],
)
def test_silos_that_do_not_fit_the_run_are_refused(silos, code):
    with pytest.raises(DataError) as raised:
        simulate(settings(), silos)
    assert raised.value.code == code
