"""Federated runs of ``same_bytes``: a real coordinator and real silos over mutual TLS, one run for every strategy,
codec and way of evaluating that ``coordinator.toml`` offers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import same_bytes_recorder
from .same_bytes_normal import (
    MOVED,
    NOISY,
    certificate,
    database,
    files,
    json_lines,
    log_lines,
    model,
    normalised,
    settings,
    wire,
)
from .same_bytes_scenarios import Records, ScenarioContext
from .same_bytes_tree import FAILURES, Daemon, Tree, wait_until

SILOS = {"anna": 48, "berta": 30, "carla": 60}  # rows
LABELS, WIDTH, ROUNDS = ("run", "jump", "wave"), 12, 3
RUN_S = 900.0  # that a run may take: a busy machine must not decide who takes part
# Of the demo's report: what it says of accuracies is in its answer too, all others are times.
NUMBER, MINUTES = re.compile(r"\d[\d.,:-]*"), re.compile(r"# min # s|# min")
Keys = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """Settings of a run in addition to the common ones, by table of coordinator.toml and by silo of agent.toml."""

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


def federation(context: ScenarioContext) -> Records:
    """The set-up first, then every case."""
    tree = context.tree
    enrolled = tree.work / "enrolled"
    yield "set-up", _enrol(tree, enrolled)
    for name in context.cases or CASES:
        case = CASES[name]
        folder = tree.work / "runs" / name.replace(",", "").replace(" ", "-")
        shutil.copytree(enrolled, folder)
        try:
            _serve(tree, folder, case)
            for what, record in _records(tree, folder, case).items():
                yield f"{name}: {what}", record
        except FAILURES as failed:  # the other cases go on
            yield f"{name}: to its end", failed


def demo(context: ScenarioContext) -> Records:
    """The whole system on clips that it renders: silos that extract before they train, baselines, the report."""
    tree, out = context.tree, context.tree.work / "demo"
    words = ("--out", out, "--bundle", context.bundle("miniworld"), "--silos", "2", "--rounds", "2")
    yield "answer", normalised(tree.run("flamest-demo", *words), tree.home)
    yield "clips", files(out / "clips")
    stores = {place.parent.name: database(place) for place in sorted(out.glob("*/features.sqlite"))}
    yield "stores", stores
    yield "models", {str(path.relative_to(out)): model(path) for path in sorted(out.rglob("*.safetensors"))}
    yield "coordinator's tables", database(out / "coordinator" / "state" / "coordinator.sqlite")
    ledgers = sorted(out.glob("*/state/egress.jsonl"))
    yield "ledgers", {path.parent.parent.name: _ledger(normalised(json_lines(path), tree.home)) for path in ledgers}
    report = NUMBER.sub("#", (out / "report.html").read_text().replace(str(tree.home), "HOME"))
    yield "report, without its numbers", {"words": MINUTES.sub("# s", report).splitlines()}


def _enrol(tree: Tree, folder: Path) -> dict[str, Any]:
    """Certificates, starter settings and filled stores."""
    centre = folder / "coordinator"
    answer = tree.run("flamest-coordinator", "init", centre, "--host", "127.0.0.1", "--labels", ",".join(LABELS))
    made = {
        "init": normalised(answer, tree.home),
        "coordinator.toml": settings(centre / "coordinator.toml"),
        "ca.pem": certificate(centre / "ca.pem"),
        "server.pem": certificate(centre / "server.pem"),
    }
    for silo in SILOS:
        place = folder / silo
        key = tree.run("flamest-agent", "keygen", silo, "--out", place)
        signed = tree.run("flamest-coordinator", "silo", "add", silo, "--csr", key["csr"], "--dir", centre)
        for name in signed["files"]:
            shutil.copyfile(Path(signed["hand_over"]) / name, place / name)
        _features(place / "features.npz", silo)
        store = ("--store", place / "features.sqlite", "--name", "toy")
        imported = tree.run("flamest-agent", "import-features", place / "features.npz", *store)
        made[silo] = {
            "answers": normalised([key, signed, imported], tree.home),
            "agent.toml": settings(place / "agent.toml"),
            "silo.pem": certificate(place / "silo.pem"),
            "store": database(place / "features.sqlite"),
        }
    allowed = tree.run("flamest-coordinator", "silo", "list", "--dir", centre)
    made["silo list"] = normalised(allowed, tree.home, but=frozenset({"added", "expires", "certificate_sha256"}))
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
    (centre / "coordinator.toml").write_text(
        _coordinator(case, recipes=(tree.parent / "flamest" / "fedproto" / "recipes.py").is_file())
    )
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


def _coordinator(case: Case, *, recipes: bool) -> str:
    """Return coordinator.toml; ``recipes``: the tree has them, and the paper's is meant."""
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
        **({"recipe": "paper"} if recipes else {}),
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


def _records(tree: Tree, folder: Path, case: Case) -> dict[str, Any]:
    """Everything that a finished run leaves: files, tables, answers, messages."""
    centre, silos = folder / "coordinator", list(SILOS)[: case.silos]
    state, places = centre / "state", {silo: folder / silo / "state" for silo in silos}
    but = NOISY if case.noisy else frozenset()
    logs = {"coordinator": folder / "coordinator.log", **{silo: folder / silo / "log" for silo in silos}}
    models = sorted(state.rglob("*.safetensors"))
    return {
        "models": {str(path.relative_to(state)): model(path, noisy=case.noisy) for path in models},
        "coordinator's tables": database(state / "coordinator.sqlite", but=but),
        "coordinator's files": _other_files(state, case),
        "answers": _answers(tree, folder, case, but),
        "ledgers": {
            silo: _ledger(normalised(json_lines(place / "egress.jsonl"), tree.home, but=but))
            for silo, place in places.items()
        },
        "silos' status": {
            silo: normalised(json.loads((place / "status.json").read_text()), tree.home, but=but | MOVED)
            for silo, place in places.items()
        },
        "silos' files": {silo: _other_files(place, case) for silo, place in places.items()},
        "logs": {name: log_lines(path, tree.home, noisy=case.noisy) for name, path in logs.items()},
        "wire": {silo: wire(folder / silo / "wire", noisy=case.noisy) for silo in silos},
    }


def _answers(tree: Tree, folder: Path, case: Case, but: frozenset[str]) -> dict[str, Any]:
    """Of the commands that look at a run afterwards; of all of them where silos have policies."""
    config = folder / "coordinator" / "coordinator.toml"
    asked: list[tuple[str | Path, ...]] = [("history",), ("status",), ("evaluation",)]
    if case.policy and not case.noisy:
        asked += [("doctor",), ("model", "--best", "--out", folder / "best.safetensors")]
    found = {
        str(words[0]): normalised(tree.run("flamest-coordinator", *words, "--config", config), tree.home, but=but)
        for words in asked
    }
    if case.policy:
        for silo in list(SILOS)[: case.silos]:
            config = folder / silo / "agent.toml"
            found[f"{silo}'s status"] = normalised(
                tree.run("flamest-agent", "status", "--config", config), tree.home, but=but | MOVED
            )
            egress = normalised(tree.run("flamest-agent", "egress", "--config", config), tree.home, but=but | {"head"})
            found[f"{silo}'s egress"] = {**egress, "entries": _ledger(egress["entries"])}
    return found


def _ledger(lines: list[dict[str, Any]]) -> list[Any]:
    """Without hash and length of the certificate, whose signature is another one every time."""
    left_out = {("enrolment", "sha256"), ("enrolment", "bytes")}
    return [{key: value for key, value in line.items() if (line["what"], key) not in left_out} for line in lines]


def _other_files(state: Path, case: Case) -> Any:
    """Files of a state folder, without those that other rows compare and those that differ in every run."""
    found = {name: made for name, made in files(state).items() if Path(name).name not in ELSEWHERE}
    return sorted(found) if case.noisy else found
