"""Federated runs of ``same_bytes``: a real coordinator and real silos over mutual TLS, one run for every strategy,
codec and way of evaluating that ``coordinator.toml`` offers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import same_bytes_recorder
from .same_bytes_normal import NOISY, database, files, json_lines, model, told, wire
from .same_bytes_scenarios import Records, Workshop
from .same_bytes_tree import Daemon, Tree, wait_until

SILOS = {"anna": 48, "berta": 30, "carla": 60}  # rows
LABELS, WIDTH, ROUNDS = ("run", "jump", "wave"), 12, 3
RUN_S = 120.0
Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """What a run's settings have beyond the common ones, by table of coordinator.toml and by silo of agent.toml."""

    silos: int = 3
    run: Keys = field(default_factory=dict)
    strategy: Keys = field(default_factory=dict)
    train: Keys = field(default_factory=dict)
    head: Keys = field(default_factory=dict)
    checks: Keys = field(default_factory=dict)
    policy: Mapping[str, Keys] = field(default_factory=dict)
    noisy: bool = False  # a policy adds noise that cannot be repeated


# Files of state folders that are compared by what is in them; and, the last two, random or empty ones.
ELSEWHERE = ("coordinator.sqlite", "egress.jsonl", "egress.head", "status.json", "instance", "lock")
SHARE = {"share_for_evaluation": True}
CASES = {
    "fedavg": Case(policy={"anna": {"report_classes": 1}, "berta": {"report_evaluation": False}}),
    "fedprox": Case(2, strategy={"name": "fedprox", "mu": 0.1}),
    "feddyn": Case(2, strategy={"name": "feddyn", "alpha": 0.1, "average_last": 2}),
    "fedavgm": Case(2, strategy={"server_momentum": 0.9}),
    "fedadam": Case(2, strategy={"server_adam": 0.05, "server_beta1": 0.8, "server_beta2": 0.95, "server_tau": 0.01}),
    "median": Case(strategy={"combine": "median"}),
    "trimmed mean": Case(strategy={"combine": "trimmed_mean", "trim": 0.34}),
    "clip": Case(strategy={"clip": 0.6}),
    "average_last, balanced, decaying rate": Case(
        2, strategy={"average_last": 2}, train={"class_balanced": True, "learning_rate_decay": 0.8}
    ),
    "fedprox, median, clip, fedavgm": Case(
        strategy={"name": "fedprox", "mu": 0.1, "combine": "median", "clip": 1.0, "server_momentum": 0.5}
    ),
    "trimmed mean, clip, fedadam": Case(
        strategy={"combine": "trimmed_mean", "trim": 0.34, "clip": 1.0, "server_adam": 0.1}
    ),
    "rgcf": Case(2, head={"kind": "rgcf", "blocks": [4, 8], "standardise": True, "common": 6}),
    "norm bound": Case(run={"min_silos": 1, "rounds": 4}, checks={"norm_times": 1.0, "quarantine_after": 0}),
    "fp16": Case(2, run={"codec": "fp16"}),
    "int8": Case(2, run={"codec": "int8"}),
    "sparse_int8": Case(2, run={"codec": "sparse_int8"}),
    "int8, feddyn": Case(2, run={"codec": "int8"}, strategy={"name": "feddyn", "alpha": 0.1}),
    "evaluation by sites": Case(
        run={"final_evaluation": "sites"},
        policy={"anna": {**SHARE, "report_classes": 2, "refuse_worse": True}, "berta": SHARE},
    ),
    "policies": Case(
        run={"codec": "sparse_int8", "final_evaluation": "model", "min_silos": 2},
        policy={
            "anna": {"privacy": "clip", "clip_norm": 0.5, "noise": 0.0, "codec": "fp16"},  # no noise: to be repeated
            "berta": {"min_samples": 1000},  # refuses every round
            "carla": {"report_counts": "power-of-two"},
        },
    ),
    "noise": Case(
        2,
        run={"rounds": 1},  # from the second round on everything follows from noise
        policy={"anna": {"privacy": "clip"}, "berta": {"privacy": "record-dp", "epsilon": 50.0}},
        noisy=True,
    ),
}


def federation(workshop: Workshop) -> Records:
    """Name and record of each thing: the set-up first, then every case."""
    tree = workshop.tree
    enrolled = tree.work / "enrolled"
    yield "set-up", _enrol(tree, enrolled)
    for name, case in CASES.items():
        folder = tree.work / "runs" / name.replace(",", "").replace(" ", "-")
        shutil.copytree(enrolled, folder)
        _serve(tree, folder, case)
        for what, record in _records(tree, folder, case):
            yield f"{name}: {what}", record


def _enrol(tree: Tree, folder: Path) -> dict[str, Any]:
    """Certificates, starter settings and filled stores."""
    made: dict[str, Any] = {}
    centre = folder / "coordinator"
    said = tree.run("flamest-coordinator", "init", centre, "--host", "127.0.0.1", "--labels", ",".join(LABELS))
    made["init"] = told(said, tree.home)
    made["coordinator.toml"] = (centre / "coordinator.toml").read_text()
    for silo in SILOS:
        place = folder / silo
        key = tree.run("flamest-agent", "keygen", silo, "--out", place)
        signed = tree.run("flamest-coordinator", "silo", "add", silo, "--csr", key["csr"], "--dir", centre)
        for name in signed["files"]:
            shutil.copyfile(Path(signed["hand_over"]) / name, place / name)
        made[silo] = told([key, signed], tree.home, but=frozenset({"expires", "serial", "fingerprint"}))
        made[f"{silo} agent.toml"] = (place / "agent.toml").read_text()
        _features(place / "features.npz", silo)
        store = place / "features.sqlite"
        imported = tree.run(
            "flamest-agent", "import-features", place / "features.npz", "--store", store, "--name", "toy"
        )
        made[f"{silo} imported"] = told(imported, tree.home)
        made[f"{silo} store"] = database(store)
    return made


def _features(path: Path, silo: str) -> None:
    """Rows that a head can learn, in groups of four, the same in every run of this bench."""
    random = np.random.default_rng(sorted(SILOS).index(silo))
    centres = np.random.default_rng(99).normal(size=(len(LABELS), WIDTH)) * 1.5
    y = np.arange(SILOS[silo]) % len(LABELS)
    x = (centres[y] + random.normal(size=(len(y), WIDTH))).astype(np.float32)
    group = [f"group-{row // 4}" for row in range(len(y))]
    clip = [f"{silo}-{row}" for row in range(len(y))]
    np.savez(path, x=x, y=np.array(LABELS)[y], group=np.array(group), clip=np.array(clip))


def _serve(tree: Tree, folder: Path, case: Case) -> None:
    """Run coordinator and silos to their end; each silo's messages go to its folder's ``wire``."""
    centre, silos = folder / "coordinator", list(SILOS)[: case.silos]
    for silo in list(SILOS)[case.silos :]:
        tree.run("flamest-coordinator", "silo", "revoke", silo, "--dir", centre)
    (centre / "coordinator.toml").write_text(_coordinator(case))
    recorder = folder / "recorder"
    recorder.mkdir()
    shutil.copyfile(same_bytes_recorder.__file__, recorder / "sitecustomize.py")
    with tree.daemons() as start:
        running: list[Daemon] = []
        config = centre / "coordinator.toml"
        running.append(
            start(
                folder / "coordinator.log",
                tree.environment(),
                "flamest-coordinator",
                "run",
                "--config",
                config,
                "--once",
                "--json",
            )
        )
        address = centre / "state" / "address"  # a silo that finds no one listening waits long before it asks again
        wait_until(lambda: running[0].ended() or address.exists(), "the coordinator's start", seconds=RUN_S)
        for silo in silos:
            (folder / silo / "agent.toml").write_text(_agent(silo, address.read_text().strip(), case))
            environment = tree.environment(recorder, SAME_BYTES_WIRE=str(folder / silo / "wire"))
            words = ["run", "--config", folder / silo / "agent.toml", "--once", "--json"]
            running.append(start(folder / silo / "log", environment, "flamest-agent", *words))
        # A set: each is asked, so that an error of any is seen at once.
        wait_until(lambda: {daemon.ended() for daemon in running} == {True}, f"the run in {folder}", seconds=RUN_S)


def _coordinator(case: Case) -> str:
    server = {
        "listen": "127.0.0.1:0",
        "ca": "ca.pem",
        "certificate": "server.pem",
        "key": "server-key.pem",
        "silos": "silos.json",
        "state": "state",
    }
    run = {
        "name": "same",
        "labels": LABELS,
        "fingerprint": f"imported:toy:{WIDTH}",
        "inputs": WIDTH,
        "hidden": [8],
        "rounds": ROUNDS,
        "min_silos": case.silos,
        "deadline_s": RUN_S,
        "seed": 3,
    }
    train = {"epochs": 2, "batch_size": 16}
    return _toml(
        {
            "server": server,
            "run": {**run, **case.run},
            "run.strategy": case.strategy,
            "run.train": {**train, **case.train},
            "run.head": case.head,
            "checks": case.checks,
        }
    )


def _agent(silo: str, address: str, case: Case) -> str:
    link = {"address": address, "ca": "ca.pem", "certificate": "silo.pem", "key": f"{silo}.key"}
    policy = {"min_samples": 1, "min_samples_override": True, **case.policy.get(silo, {})}
    first = 'state = "state"\nstore = "features.sqlite"\n'
    return first + _toml({"coordinator": link, "policy": policy, "work": {"threads": 1}})


def _toml(tables: Mapping[str, Keys]) -> str:
    """Values of these kinds are written as in JSON."""
    lines = []
    for name, keys in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def _records(tree: Tree, folder: Path, case: Case) -> Records:
    """What a finished run has left."""
    centre, silos = folder / "coordinator", list(SILOS)[: case.silos]
    state, config = centre / "state", centre / "coordinator.toml"
    but = NOISY if case.noisy else frozenset()

    def answer(command: str, *words: str | Path) -> Any:
        return told(tree.run(command, *words), tree.home, but=but)

    models = sorted(state.rglob("*.safetensors"))
    yield "models", {str(path.relative_to(state)): model(path, noisy=case.noisy) for path in models}
    yield "coordinator's tables", database(state / "coordinator.sqlite", but=but)
    yield "coordinator's files", _other_files(state, case)
    yield (
        "answers",
        {
            word: told(tree.run("flamest-coordinator", word, "--config", config), tree.home, but=but)
            for word in ("history", "status", "evaluation")
        },
    )
    places = {silo: folder / silo / "state" for silo in silos}
    yield "ledgers", {silo: _ledger(place / "egress.jsonl", tree, but) for silo, place in places.items()}
    yield "silos' status", {silo: _status(place / "status.json", tree, but) for silo, place in places.items()}
    yield "silos' files", {silo: _other_files(place, case) for silo, place in places.items()}
    yield "wire", {silo: wire(folder / silo / "wire", noisy=case.noisy) for silo in silos}


def _ledger(path: Path, tree: Tree, but: frozenset[str]) -> list[Any]:
    """Without the hash of the certificate, which is another one every time."""
    lines = told(json_lines(path), tree.home, but=but)
    return [
        {key: value for key, value in line.items() if (line["what"], key) != ("enrolment", "sha256")} for line in lines
    ]


def _status(path: Path, tree: Tree, but: frozenset[str]) -> Any:
    """Without the bytes moved: how often a silo asked for work in vain depends on how fast the others were."""
    return told(json.loads(path.read_text()), tree.home, but=but | {"sent_bytes", "received_bytes"})


def _other_files(state: Path, case: Case) -> Any:
    """What lies in a state folder beside the files that other rows are about or that no two runs share."""
    found = {name: made for name, made in files(state).items() if Path(name).name not in ELSEWHERE}
    return sorted(found) if case.noisy else found
