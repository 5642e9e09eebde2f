"""A malicious coordinator over real mutual TLS that uses a silo's agent as an oracle: how many evaluations reach it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest
from flamest.agent.daemon import run_agent
from flamest.agent.egress.ledger import read_ledger
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.settings import load_agent_settings
from flamest.base.files import sha256_bytes
from flamest.base.process import Shutdown
from flamest.fedproto import calls, messages
from flamest.fedproto.head import HeadSpec, params_sha256
from flamest.fedproto.records import PROTOCOL, Phase, Receipt, RunSettings, TaskStatus, TrainSettings
from flamest.fedproto.tensors import encode_params, payload_bytes
from flamest.fedproto.tls import ServerTls, TlsFiles
from flamest.runtime.clip_records import Clip

WIDTH, CLIPS = 6, 400
LABELS = ("fall", "run")
RUN = RunSettings(
    "r", LABELS, HeadSpec(WIDTH, 2, ()), 2, 1, 600.0, "fingerprint", train=TrainSettings(epochs=1),
    final_evaluation="model",
)  # fmt: skip
ASKS_FOR_NONE = msgspec.structs.replace(RUN, final_evaluation="none")
SITES = msgspec.structs.replace(RUN, final_evaluation="sites")
MANY = (1 << 32) - 1
PATIENCE_S = 4.0  # time that the coordinator asks for
ENOUGH = 12  # evaluations after which a test need not wait for more


def model(number: int) -> dict[str, np.ndarray]:
    """A model of the attacker's choice: another one for every number."""
    random = np.random.default_rng(number)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in RUN.head.shapes.items()}


@dataclass
class Malice:
    """A plan of attack: the coordinator acts so once the silo has answered the rounds of the run."""

    run: RunSettings = RUN
    takes_part: bool = True  # the silo is given the run's rounds first
    round: int = 2  # in EVALUATE
    subjects: int = 1
    new_models: bool = True  # another one each time it asks
    new_runs: bool = False  # another run each time it is joined, and it is joined all the time
    reopens: bool = False  # a round with a number of its own between two evaluations


@dataclass
class Oracle:
    """A coordinator that speaks the protocol, and keeps what the silo reports."""

    malice: Malice
    reports: list[tuple] = field(
        default_factory=list
    )  # (loss, correct) of each model, of each report that is no refusal
    declined: int = 0
    asked: int = 0
    joined: int = 0

    @property
    def run(self) -> RunSettings:
        named = f"r{self.joined}" if self.malice.new_runs else "r"
        return msgspec.structs.replace(self.malice.run, run=named)

    @property
    def figures(self) -> set:
        """Different figures that the attacker has: a report that is sent again tells nothing."""
        return {figures for report in self.reports for figures in report}

    def join(self, _: bytes, __) -> bytes:
        self.joined += 1
        return messages.encode_join_reply(PROTOCOL, self.run)

    def wait(self, data: bytes, context) -> bytes:
        request = messages.decode_wait_request(data)
        if request.settings_sha256 != self.run.sha256:
            context.set_trailing_metadata(((calls.CODE_KEY, "other_run"),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another run")
        self.asked += self.malice.new_models
        answered = request.answered_round
        if self.malice.takes_part and answered < self.run.rounds:
            return self._task(Phase.OPEN, answered + 1)
        if self.malice.new_runs and self.asked % 3 == 0:
            self.joined += 1
        return self._task(Phase.EVALUATE, self.malice.round)

    def _task(self, phase: Phase, number: int) -> bytes:
        sha256 = params_sha256(model(self.asked * 1000))
        return messages.encode_task_status(TaskStatus(phase, number, sha256, 600.0, 0.01, 0, self.malice.subjects))

    def fetch(self, data: bytes, _):
        request = messages.decode_fetch_request(data)
        params = model(self.asked * 1000 + request.subject)
        size = payload_bytes(RUN.head)
        yield messages.encode_model_header(messages.ModelHeader(request.round, params_sha256(params), size, "fp32"))
        yield messages.encode_model_data(encode_params(RUN.head, params))

    def submit(self, parts, _) -> bytes:
        header = messages.decode_update_part(next(parts))
        for _part in parts:
            pass
        return messages.encode_receipt(Receipt(header.round, header.update_id, header.payload_sha256))

    def report(self, data: bytes, _) -> bytes:
        report = messages.decode_evaluation_report(data)
        if report.results:
            self.reports.append(tuple((one.evaluation.loss, one.evaluation.correct) for one in report.results))
        else:
            self.declined += 1
        return messages.encode_evaluation_receipt(messages.EvaluationReceipt(report.round, len(report.results)))


def served(oracle: Oracle, folder: Path) -> tuple[grpc.Server, str]:
    """Serve the oracle with the federation's own certificate; returns the server and its address."""
    server = grpc.server(ThreadPoolExecutor(4))
    methods = {
        calls.JOIN: grpc.unary_unary_rpc_method_handler(oracle.join),
        calls.WAIT_FOR_ROUND: grpc.unary_unary_rpc_method_handler(oracle.wait),
        calls.FETCH_MODEL: grpc.unary_stream_rpc_method_handler(oracle.fetch),
        calls.SUBMIT_UPDATE: grpc.stream_unary_rpc_method_handler(oracle.submit),
        calls.REPORT_EVALUATION: grpc.unary_unary_rpc_method_handler(oracle.report),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(calls.SERVICE, methods),))
    files = TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server-key.pem")
    port = server.add_secure_port("127.0.0.1:0", ServerTls(files).credentials())
    server.start()
    return server, f"127.0.0.1:{port}"


def row(number: int, x: np.ndarray) -> tuple[str, FeatureRow]:
    clip = Clip(Path(f"{number}.mp4"), sha256_bytes(b"%d" % number), LABELS[number % 2], f"g{number // 5}")
    return clip.path.name, FeatureRow(clip, x, 8, "fingerprint", "fp32")


@pytest.fixture
def attack(make_federation, tmp_path) -> Callable[[Malice], Oracle]:
    """Let a real agent with the default policy and 400 clips serve a malicious coordinator for a while."""

    def run(malice: Malice) -> Oracle:
        federation, oracle = make_federation("a"), Oracle(malice)
        server, address = served(oracle, federation.folder)
        random = np.random.default_rng(3)
        with FeatureStore.open(tmp_path / "features.sqlite") as store:
            store.add_rows(row(number, random.normal(size=WIDTH).astype(np.float32)) for number in range(CLIPS))
        connection = federation.connection_settings("a", address=address)
        (tmp_path / "agent.toml").write_text(
            f'state = "state"\nstore = "features.sqlite"\n[coordinator]\naddress = "{address}"\n'
            f'ca = "{connection.ca}"\ncertificate = "{connection.certificate}"\nkey = "{connection.key}"\n'
            "[work]\nthreads = 1\n"
        )
        shutdown = Shutdown()
        settings = load_agent_settings(tmp_path / "agent.toml")
        agent = threading.Thread(target=run_agent, args=(settings, "a", shutdown), kwargs={"once": False})
        agent.start()
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and len(oracle.figures) < ENOUGH and agent.is_alive():
            time.sleep(0.05)
        lived = agent.is_alive()
        shutdown.request()
        agent.join(60)
        server.stop(0).wait()
        assert lived, "the coordinator ended the agent"
        assert oracle.asked or not malice.new_models
        return oracle

    return run


SOAK = (  # variants of others
    "a run that asks for none, 2^32 - 1 models",
    "sites, 2^32 - 1 models",
    "before the first round",
    "a round at 2^63",
    "256 models, a new first one every time",
    "a new run every time",
)
VARIANTS = {
    "a run that asks for none": (Malice(ASKS_FOR_NONE), 0),
    "a run that asks for none, and in which it took no part": (Malice(ASKS_FOR_NONE, takes_part=False), 0),
    "a run that asks for none, 2^32 - 1 models": (Malice(ASKS_FOR_NONE, subjects=MANY, new_models=False), 0),
    "a run that it took no part in": (Malice(takes_part=False), 0),
    "the same model for ever": (Malice(new_models=False), 1),
    "a new model every time": (Malice(), 1),
    "2^32 - 1 models": (Malice(subjects=MANY), 1),
    "256 models, a new first one every time": (Malice(subjects=256), 1),
    "sites, but this silo shares nothing": (Malice(SITES, subjects=100), 1),
    "sites, 2^32 - 1 models": (Malice(SITES, subjects=MANY), 1),
    "in the middle of the run": (Malice(round=1), 0),
    "before the first round": (Malice(round=0), 0),
    "a round that is not the run's": (Malice(round=7), 1),
    "a round at 2^63": (Malice(round=1 << 63), 1),
    "a new run every time": (Malice(takes_part=False, new_runs=True), 0),
    "a new run every time that asks for none": (Malice(ASKS_FOR_NONE, takes_part=False, new_runs=True), 0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in SOAK else name for name in VARIANTS]
)
def test_a_coordinator_gets_no_evaluation_beyond_the_runs_own(attack, tmp_path, name):
    malice, allowed = VARIANTS[name]
    oracle = attack(malice)
    assert len(oracle.figures) <= allowed
    evaluations = [entry for entry in read_ledger(tmp_path / "state").of("evaluation") if entry.models]
    assert len(evaluations) >= len(set(oracle.reports)), "the ledger misses a report"
