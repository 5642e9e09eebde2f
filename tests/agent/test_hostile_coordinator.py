"""A real agent and a coordinator that sends what no honest one sends.

Every case must end in a named code in the agent's status, without a line in the egress ledger, and the agent must
answer the next honest round. The agent is one and the same for all cases; its pauses are shortened.
"""

from __future__ import annotations

import importlib.util
import itertools
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from flamest.agent import client, daemon, pauses, status
from flamest.agent.egress.ledger import read_ledger
from flamest.agent.retry import Backoff
from flamest.agent.status import AgentStatus, read_status
from flamest.base.errors import FlamestError
from flamest.base.process import Shutdown
from flamest.experiments.processes import wait_until
from flamest.fedproto import messages
from flamest.fedproto.records import Phase, Receipt, decode_run_settings

_spec = importlib.util.spec_from_file_location(
    "hostile_coordinator", Path(__file__).with_name("hostile_coordinator.py")
)
hostile_coordinator = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile_coordinator)
RUN, Status, changed, join_reply = (
    getattr(hostile_coordinator, name) for name in ("RUN", "Status", "changed", "join_reply")
)
MAX_GROWTH = 150 << 20  # bytes of the agent's and this server's process
OTHER_RUN = Status(grpc.StatusCode.FAILED_PRECONDITION, "another run", "other_run")


class Site:
    """The agent in a thread, and its coordinator."""

    def __init__(self, federation, folder: Path) -> None:
        self.coordinator = hostile_coordinator.HostileCoordinator(federation.folder)
        self.state = folder / "state"
        hostile_coordinator.fill_store(folder / "store.sqlite")
        connection = federation.connection_settings("a", address=self.coordinator.address)
        self.settings = hostile_coordinator.agent_settings(folder, connection)
        self.shutdown = Shutdown()
        self.thread = threading.Thread(
            target=daemon.run_agent, args=(self.settings, "a", self.shutdown), kwargs={"once": False}
        )
        self.thread.start()

    def stop(self) -> float:
        began = time.monotonic()
        self.shutdown.request()
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.coordinator.stop()
        return time.monotonic() - began

    @property
    def status(self):
        try:
            return read_status(self.state)
        except FlamestError:  # none yet
            return AgentStatus()

    def lines(self) -> int:
        """Lines of the ledger about rounds and evaluations."""
        return sum(entry.what not in ("enrolment", "policy") for entry in read_ledger(self.state).entries)

    def await_code(self, code: str) -> None:
        def found() -> bool:
            assert self.thread.is_alive()
            return code in (self.status.code, self.status.doing)

        wait_until(found, f"{code}, not {self.status.code}", seconds=20)

    def answer_an_honest_round(self, also: int = 0) -> None:
        """Open a round, which adds a line; ``also``: rounds before it that may be answered late, after an outage."""
        coordinator, lines = self.coordinator, self.lines()
        coordinator.round += 1
        coordinator.params = hostile_coordinator.initial_params(RUN.head, 0)
        wait_until(lambda: coordinator._has(coordinator.round), "the next update", seconds=20)
        wait_until(lambda: self.status.round == coordinator.round, "its receipt", seconds=10)
        assert self.thread.is_alive()
        assert lines < self.lines() <= lines + 1 + also

    def check(self, code: str, *, new_round: bool = True, **replies) -> None:
        """Give hostile replies until the agent shows ``code``; then it answers an honest round, if there is one."""
        before, resident = self.lines(), psutil.Process().memory_info().rss
        self.coordinator.round += new_round
        joins = self.coordinator.calls["Join"]
        with self.coordinator.hostile(**replies):
            if not new_round:
                wait_until(lambda: self.coordinator.calls["Join"] > joins + 1, "two joins", seconds=20)
            self.await_code(code)
        assert self.lines() == before
        assert psutil.Process().memory_info().rss - resident < MAX_GROWTH
        assert len((self.state / "status.json").read_bytes()) < 4096
        if new_round:
            self.answer_an_honest_round()


@pytest.fixture(scope="module")
def short_pauses():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pauses, "PAUSE_S", (0.05, 0.2))
        patch.setattr(daemon, "RECONNECT_S", (0.05, 0.2))
        patch.setattr(
            client, "Backoff", lambda **given: Backoff(give_up_after_s=0.5, first_s=0.02, spread_s=0.1, **given)
        )
        yield


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("tests_conftest", Path(__file__).parent.parent / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Federation(tmp_path_factory.mktemp("hostile"), ("a",))


@pytest.fixture(scope="module")
def site(federation, short_pauses, tmp_path_factory):
    site = Site(federation, tmp_path_factory.mktemp("site"))
    try:
        site.answer_an_honest_round()
        yield site
    finally:
        site.stop()


@pytest.fixture
def own_site(federation, short_pauses, tmp_path):
    site = Site(federation, tmp_path)
    yield site
    site.stop()


NESTED = b'{"run":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
BAD_HEAD, TOO_LARGE = "bad_head", "model_too_large"
SETTINGS = {
    "inputs negative": (changed(head__inputs=-6), BAD_HEAD),
    "inputs zero": (changed(head__inputs=0), BAD_HEAD),
    "inputs too wide": (changed(head__inputs=65_537), BAD_HEAD),
    "inputs beyond 64 bits": (changed(head__inputs=(1 << 64) + 6), BAD_HEAD),
    "widths that wrap at 2^64": (changed(head__inputs=1 << 32, head__hidden=[1 << 32]), BAD_HEAD),
    "a hidden layer of 0": (changed(head__hidden=[0]), BAD_HEAD),
    "a negative hidden layer": (changed(head__hidden=[-5]), BAD_HEAD),
    "17 layers": (changed(head__hidden=[1] * 17), BAD_HEAD),
    "20,000 layers": (changed(head__hidden=[1] * 20_000), BAD_HEAD),
    "300,000 layers": (changed(head__hidden=[1] * 300_000), BAD_HEAD),
    "a head of 250 MiB": (changed(head__hidden=[16_000, 4_000]), TOO_LARGE),
    "a head of 17 TB": (changed(head__hidden=[65_536] * 16), TOO_LARGE),
    "outputs beyond the labels": (changed(head__outputs=60_000), "bad_settings"),
    "100,000 blocks": (changed(head__blocks=[1] * 100_000), BAD_HEAD),
    "blocks that cancel out": (changed(head__blocks=[7, -1]), BAD_HEAD),
    "common 2^40": (changed(head__common=1 << 40), BAD_HEAD),
    "common 0": (changed(head__common=0), BAD_HEAD),
    "an unknown kind of head": (changed(head__kind="cnn"), "bad_settings"),
    "a label twice": (changed(labels=["fall", "run", "run"]), "bad_settings"),
    "an empty label": (changed(labels=["fall", "run", ""]), "bad_settings"),
    "a blank label": (changed(labels=["fall", "run", "   "]), "bad_settings"),
    "a label of 257 characters": (changed(labels=["fall", "run", "w" * 257]), "bad_settings"),
    "a label with a newline": (changed(labels=["fall", "run", "w\nw"]), "bad_settings"),
    "a label that turns the line around": (changed(labels=["fall", "run", "\u202ewalk"]), "bad_settings"),
    "a label with half a character": (changed(labels=["fall", "run", "\ud800"]), "bad_settings"),
    "100,000 labels": (changed(labels=[str(n) for n in range(100_000)], head__outputs=65_536), "bad_settings"),
    "no labels": (changed(labels=[]), "bad_settings"),
    "an empty fingerprint": (changed(fingerprint=""), "bad_settings"),
    "a blank fingerprint": (changed(fingerprint=" "), "bad_settings"),
    "a fingerprint of 1,000 characters": (changed(fingerprint="f" * 1_000), "bad_settings"),
    "an empty run name": (changed(run=""), "bad_settings"),
    "a run name of 200 characters": (changed(run="r" * 200), "bad_settings"),
    "a run name of 3 MB": (changed(run="r" * 3_000_000), "bad_settings"),
    "a run name with an escape": (changed(run="\x1b[2J"), "bad_settings"),
    "seed -1": (changed(seed=-1), "bad_settings"),
    "seed 2^64": (changed(seed=1 << 64), "bad_settings"),
    "a seed of 5,000 digits": (RUN.encode().replace(b'"seed":0', b'"seed":' + b"9" * 5_000), "bad_settings"),
    "0 epochs": (changed(train__epochs=0), "bad_settings"),
    "10^9 epochs": (changed(train__epochs=10**9), "bad_settings"),
    "2^62 epochs": (changed(train__epochs=1 << 62), "bad_settings"),
    "a batch of 0": (changed(train__batch_size=0), "bad_settings"),
    "a batch of 2^62": (changed(train__batch_size=1 << 62), "bad_settings"),
    "a batch of all layers' values": (changed(train__batch_size=1 << 20, head__hidden=[60_000]), "bad_settings"),
    "learning rate 0": (changed(train__learning_rate=0.0), "bad_settings"),
    "learning rate 1e300": (changed(train__learning_rate=1e300), "bad_settings"),
    "an infinite learning rate": (RUN.encode().replace(b"0.01", b"1e999"), "bad_settings"),
    "learning rate NaN": (RUN.encode().replace(b"0.01", b"NaN"), "bad_settings"),
    "weight decay -1": (changed(train__weight_decay=-1.0), "bad_settings"),
    "weight decay 1e300": (changed(train__weight_decay=1e300), "bad_settings"),
    "decay 0": (changed(train__learning_rate_decay=0.0), "bad_settings"),
    "decay 2": (changed(train__learning_rate_decay=2.0), "bad_settings"),
    "mu 1e300": (changed(strategy__name="fedprox", strategy__mu=1e300), "bad_settings"),
    "alpha 1e300": (changed(strategy__name="feddyn", strategy__alpha=1e300), "bad_settings"),
    "clip 1e300": (changed(strategy__clip=1e300), "bad_settings"),
    "a negative trim": (changed(strategy__trim=-1.0), "bad_settings"),
    "the mean of 2^62 models": (changed(strategy__average_last=1 << 62), "bad_settings"),
    "0 rounds": (changed(rounds=0), "bad_settings"),
    "2^62 rounds": (changed(rounds=1 << 62), "bad_settings"),
    "0 silos": (changed(min_silos=0), "bad_settings"),
    "2^62 silos": (changed(min_silos=1 << 62), "bad_settings"),
    "a deadline of 0": (changed(deadline_s=0.0), "bad_settings"),
    "a negative deadline": (changed(deadline_s=-1.0), "bad_settings"),
    "a deadline of 8 days": (changed(deadline_s=8 * 86400.0), "bad_settings"),
    "an unknown codec": (changed(codec="zip"), "bad_settings"),
    "an unknown key": (changed(extra=1), "bad_settings"),
    "an unknown key of 100 kB": (changed(**{"k" * 100_000: 1}), "bad_settings"),
    "a key twice": (RUN.encode().replace(b'"rounds":1000', b'"rounds":1000,"rounds":2'), "bad_settings"),
    "spaces between": (RUN.encode().replace(b",", b" ,"), "bad_settings"),
    "blocks of 4,000 digits": (changed(head__blocks=[int("9" * 4_000)] * 16), BAD_HEAD),
    "a common width of 4,000 digits": (changed(head__common=int("9" * 4_000)), BAD_HEAD),
    "two blocks beyond inputs": (changed(head__kind="rgcf", head__blocks=[3, 4]), BAD_HEAD),
    "inputs of 4,000 digits": (changed(head__inputs=int("9" * 4_000)), BAD_HEAD),
    "rgcf of one block": (changed(head__kind="rgcf", head__blocks=[6]), BAD_HEAD),
    "true epochs": (changed(train__epochs=True), "bad_settings"),
    "half an epoch": (changed(train__epochs=0.5), "bad_settings"),
    "epochs as a text": (changed(train__epochs="1"), "bad_settings"),
    "no head": (changed(head=None), "bad_settings"),
    "no labels at all": (changed(labels=None), "bad_settings"),
    "a label of invisible characters": (changed(labels=["fall", "run", "\u200b\u2060"]), "bad_settings"),
    "a label that ends a line": (changed(labels=["fall", "run", "w\u2028w"]), "bad_settings"),
    "a label of tag characters": (changed(labels=["fall", "run", "w\U000e0041"]), "bad_settings"),
    "a run name with a bell": (changed(run="a\x07"), "bad_settings"),
    "a run name in private characters": (changed(run="\ue000"), "bad_settings"),
    "a fingerprint that turns the line around": (changed(fingerprint="\u2067f"), "bad_settings"),
    "mu without fedprox": (changed(strategy__mu=1.0), "bad_settings"),
    "fedprox without mu": (changed(strategy__name="fedprox"), "bad_settings"),
    "a strategy of 100 kB": (changed(strategy__name="x" * 100_000), "bad_settings"),
    "a final evaluation of clips": (changed(final_evaluation="clips"), "bad_settings"),
    "a default that is written out": (changed(codec="fp32"), "bad_settings"),
    "a deadline of 1e-400": (RUN.encode().replace(b"600.0", b"-1e-400"), "bad_settings"),
    "a list of settings": (b"[" + RUN.encode() + b"]", "bad_settings"),
    "settings twice": (RUN.encode() * 2, "bad_settings"),
    "a byte order mark": (b"\xef\xbb\xbf" + RUN.encode(), "bad_settings"),
    "nested 200,000 deep": (NESTED, "bad_settings"),
    "no JSON": (b"\xff\xfe", "bad_settings"),
    "nothing": (b"", "bad_settings"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_out_of_bounds_are_refused(site, case):
    settings, code = SETTINGS[case]
    site.check(code, new_round=False, wait_for_round=OTHER_RUN, join=join_reply(settings))


def test_the_next_honest_round_is_answered_after_bad_settings(site):
    site.answer_an_honest_round()


@pytest.mark.parametrize(
    ("changes", "code"), [({"fingerprint": "i"}, "no_such_features"), ({"head__inputs": 7}, "feature_width")]
)
def test_settings_that_do_not_fit_the_features_are_named(own_site, changes, code):
    """An empty fingerprint, or the beginning of one, matched every store's features."""
    coordinator = own_site.coordinator
    settings = changed(**changes)
    coordinator.run = decode_run_settings(settings)
    coordinator.params = hostile_coordinator.initial_params(coordinator.run.head, 0)
    own_site.await_code(code)
    assert own_site.lines() == 0


JOINS = {
    "another digest": (join_reply(RUN.encode(), digest=b"\0" * 32), "digest"),
    "a short digest": (join_reply(RUN.encode(), digest=b"\0"), "malformed"),
    "another protocol": (join_reply(RUN.encode(), protocol=(1 << 32) - 1), "protocol"),
    "protocol 0": (join_reply(RUN.encode(), protocol=0), "protocol"),
    "no protobuf": (b"\xff" * 50, "malformed"),
    "an unknown field": (join_reply(RUN.encode()) + b"\x78\x01", "malformed"),
    "nothing": (b"", "bad_settings"),
    "more than a message may have": (join_reply(b"x" * (5 << 20)), "unreachable"),
}


@pytest.mark.parametrize("case", JOINS)
def test_bad_answers_to_join_are_refused_and_the_next_round_answered(site, case):
    reply, code = JOINS[case]
    site.check(code, new_round=False, wait_for_round=OTHER_RUN, join=reply)


TASKS = {
    "no phase": {"phase": 0},
    "an unknown phase": {"phase": 99},
    "OPEN, round 0": {"round": 0},
    "OPEN, round 2^64 - 1": {"round": (1 << 64) - 1},
    "OPEN, round 2^63": {"round": 1 << 63},
    "OPEN, round 10,000,001": {"round": 10_000_001},
    "OPEN, counted in the future": {"counted_round": 1 << 40},
    "OPEN, no time left": {"deadline_ms": 0},
    "OPEN, a short hash": {"model_sha256": b"\0" * 31},
    "FINISHED, round 0": {"phase": 3, "round": 0},
    "FINISHED before its rounds are over": {"phase": 3},
    "EVALUATE, round 0": {"phase": 4, "round": 0},
    "EVALUATE, no models": {"phase": 4, "round": 1000, "subjects": 0},
    "EVALUATE, 2^32 - 1 models": {"phase": 4, "round": 1000, "subjects": (1 << 32) - 1},
    "EVALUATE in the middle of a run": {"phase": 4, "subjects": 1},
}


@pytest.mark.parametrize("case", TASKS)
def test_tasks_that_contradict_themselves_are_refused(site, case):
    site.check("malformed", wait_for_round=lambda _: site.coordinator.task(**TASKS[case]))


MODELS = {
    "no header": (lambda c: c.model()[1:], "malformed"),
    "nothing": (lambda _: [], "malformed"),
    "empty messages": (lambda _: [b""] * 9, "malformed"),
    "two headers": (lambda c: [c.model()[0]] * 2, "payload_size"),
    "of another round": (lambda c: c.model(round=c.round + 1), "digest"),
    "of round 2^63": (lambda c: c.model(round=1 << 63), "digest"),
    "with another hash": (lambda c: c.model(model_sha256=b"\1" * 32), "digest"),
    "of 2^62 bytes": (lambda c: c.model(payload_bytes=1 << 62), "payload_size"),
    "of 0 bytes": (lambda c: c.model(payload_bytes=0)[:1], "payload_size"),
    "in int8": (lambda c: c.model(codec=3), "codec"),
    "in an unknown codec": (lambda c: c.model(codec=77), "malformed"),
    "that goes on": (lambda c: itertools.chain(c.model(), itertools.repeat(c.model()[1])), "payload_size"),
    "of empty pieces without end": (
        lambda c: itertools.chain(c.model()[:1], itertools.repeat(messages.encode_model_data(b""))),
        "payload_size",
    ),
    "cut short": (lambda c: [c.model()[0], messages.encode_model_data(b"abcd")], "payload_size"),
    "with other values": (lambda c: [c.model()[0], messages.encode_model_data(bytes(212))], "digest"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_bad_model_is_refused_and_the_next_round_answered(site, case):
    parts, code = MODELS[case]
    site.check(code, fetch_model=lambda _: parts(site.coordinator))


@pytest.mark.parametrize("value", [1e30, 3e38, -1e38, 1e-42, np.nan, np.inf])
def test_no_values_of_a_model_reach_the_ledger_as_nan(site, value):
    coordinator, lines = site.coordinator, site.lines()
    coordinator.params = {name: np.full_like(w, value) for name, w in coordinator.params.items()}
    for name in coordinator.params:
        if name.startswith("1"):
            coordinator.params[name][::2] *= -1
    payload = b"".join(tensor.tobytes() for tensor in coordinator.params.values())
    digest = hostile_coordinator.params_sha256(coordinator.params)
    header = messages.encode_model_header(messages.ModelHeader(coordinator.round + 1, digest, len(payload)))
    coordinator.round += 1
    with coordinator.hostile(fetch_model=[header, messages.encode_model_data(payload)]):
        if value == 1e-42:  # it is a model
            wait_until(lambda: coordinator._has(coordinator.round), "its update", seconds=20)
        else:
            site.await_code("model_out_of_range" if np.isfinite(value) else "not_finite")
            assert site.lines() == lines
    site.answer_an_honest_round()
    assert not read_ledger(site.state).problems


RECEIPTS = {
    "of another round": (Receipt(1 << 40, "0e" * 16, "ab" * 32), "receipt"),
    "of another update": (Receipt(1, "0e" * 16, "ab" * 32), "receipt"),
    "that is none": (b"\xff" * 20, "malformed"),
    "that is empty": (b"", "malformed"),
}


@pytest.mark.parametrize("case", RECEIPTS)
def test_a_bad_receipt_is_named_and_the_next_round_answered(site, case):
    receipt, code = RECEIPTS[case]
    reply = receipt if isinstance(receipt, bytes) else messages.encode_receipt(receipt)
    site.coordinator.round += 1
    lines = site.lines()
    with site.coordinator.hostile(submit_update=reply):
        site.await_code(code)
        time.sleep(0.5)
        assert site.lines() == lines + 1  # it was sent once
    site.answer_an_honest_round()


ENDS_THE_AGENT = {grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
CODES = [code for code in grpc.StatusCode if code not in ENDS_THE_AGENT]


@pytest.mark.parametrize("call", ["join", "wait_for_round", "fetch_model", "submit_update"])
@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_no_status_of_a_call_ends_the_agent(site, call, code):
    """Whatever it is called, with a text and a code that would fill a terminal."""
    junk = Status(code, "\x1b[2J\u202e" + "line\n" * 1000, "X" * 2000 + "\t")
    replies = {call: junk} if call != "join" else {"join": junk, "wait_for_round": OTHER_RUN}
    site.coordinator.round += 1
    calls = dict(site.coordinator.calls)
    name = "".join(word.capitalize() for word in call.split("_"))
    with site.coordinator.hostile(**replies):
        wait_until(lambda: site.coordinator.calls[name] > calls[name], "the call", seconds=20)
        time.sleep(0.2)
        assert site.thread.is_alive()
    assert len((site.state / "status.json").read_bytes()) < 4096
    assert (site.state / "status.json").read_text().replace("\n", "").isprintable()
    site.answer_an_honest_round(also=1)


def test_the_same_round_for_ever_is_answered_once(own_site):
    coordinator = own_site.coordinator
    with coordinator.hostile(wait_for_round=lambda _: coordinator.task()):
        wait_until(lambda: coordinator.updates, "the update", seconds=60)
        time.sleep(3)
        assert len(coordinator.updates) == 1
        assert coordinator.calls["FetchModel"] == 1
        assert coordinator.calls["WaitForRound"] < 60
    assert [entry.what for entry in read_ledger(own_site.state).entries].count("update") == 1
    own_site.answer_an_honest_round()


def test_settings_that_change_at_each_join_do_not_keep_a_silo_busy(own_site):
    coordinator, numbers = own_site.coordinator, itertools.count()
    own_site.answer_an_honest_round()
    joins = coordinator.calls["Join"]
    replies = {"join": lambda _: join_reply(changed(seed=next(numbers))), "wait_for_round": OTHER_RUN}
    with coordinator.hostile(**replies):
        time.sleep(3)
    assert 0 < coordinator.calls["Join"] - joins < 40  # at pauses of 0.2 s; they are a minute outside this test
    own_site.answer_an_honest_round()


def test_pauses_that_a_coordinator_asks_for_have_bounds(own_site):
    """A pause of 0 made a silo ask without end, one of 49 days kept it from the next round."""
    coordinator = own_site.coordinator
    own_site.answer_an_honest_round()
    before = coordinator.calls["WaitForRound"]
    with coordinator.hostile(wait_for_round=lambda _: coordinator.task(Phase.WAIT, poll_after_ms=0)):
        time.sleep(2)
    assert 0 < coordinator.calls["WaitForRound"] - before <= 25
    long = coordinator.task(Phase.WAIT, poll_after_ms=(1 << 32) - 1)
    assert messages.decode_task_status(long, RUN).poll_after_s <= 300
    own_site.answer_an_honest_round()


def test_a_coordinator_that_answers_at_once_has_no_status_written_each_time(own_site, monkeypatch):
    own_site.answer_an_honest_round()
    written = []
    monkeypatch.setattr(status, "write_atomic", lambda path, data, **_: written.append(data))
    coordinator = own_site.coordinator
    calls = coordinator.calls["WaitForRound"]
    with coordinator.hostile(wait_for_round=lambda _: coordinator.task(Phase.WAIT, poll_after_ms=0)):
        time.sleep(4)
    assert coordinator.calls["WaitForRound"] - calls > 10
    assert len(written) <= 3
    monkeypatch.undo()
    own_site.answer_an_honest_round()


@pytest.mark.parametrize("code", ["stale_round", "late", "closed_for_ever"])
def test_rounds_that_are_stale_without_end_fill_no_log(own_site, caplog, code):
    caplog.set_level("INFO", "flamest")
    coordinator, numbers = own_site.coordinator, itertools.count(10)
    stale = Status(grpc.StatusCode.FAILED_PRECONDITION, "\x1b[31m" * 200, code)
    own_site.answer_an_honest_round()
    fetches, lines = coordinator.calls["FetchModel"], own_site.lines()
    with coordinator.hostile(fetch_model=stale, wait_for_round=lambda _: coordinator.task(round=next(numbers))):
        wait_until(lambda: coordinator.calls["FetchModel"] - fetches > 60, "60 rounds", seconds=60)
    assert len([record for record in caplog.records if record.getMessage() == "update_stale"]) <= 2
    assert own_site.lines() == lines
    coordinator.round = next(numbers) + 5
    own_site.answer_an_honest_round()


def test_training_ends_at_the_deadline_and_the_next_round_is_answered(own_site):
    coordinator = own_site.coordinator
    own_site.answer_an_honest_round()
    lines = own_site.lines()
    long = join_reply(changed(train__epochs=1000, train__batch_size=1, head__hidden=[2_000, 2_000]))
    head = hostile_coordinator.HeadSpec(6, 3, (2_000, 2_000))
    coordinator.run = hostile_coordinator.RunSettings(**{**vars_of(RUN), "head": head})
    coordinator.params = hostile_coordinator.initial_params(head, 0)
    with coordinator.hostile(join=long, wait_for_round=OTHER_RUN):
        time.sleep(1)
        coordinator.round += 1
        coordinator.replies["WaitForRound"] = lambda _: coordinator.task(deadline_ms=3000)
        own_site.await_code("too_late")
    coordinator.run = RUN
    assert own_site.lines() == lines
    coordinator.replies = {"WaitForRound": OTHER_RUN}
    time.sleep(0.5)
    coordinator.replies = {}
    own_site.answer_an_honest_round()


def test_a_model_that_drips_ends_with_its_round(own_site):
    coordinator, over = own_site.coordinator, threading.Event()
    own_site.answer_an_honest_round()
    pieces = [coordinator.model()[0], *(messages.encode_model_data(b"\0") for _ in range(212))]

    def dripping(_request):
        return hostile_coordinator.slowly([coordinator.model()[0], *pieces[1:]], over, 1.0)

    coordinator.round += 1
    task = coordinator.task
    began = time.monotonic()
    with coordinator.hostile(fetch_model=dripping, wait_for_round=lambda _: task(Phase.OPEN, deadline_ms=2000)):
        own_site.await_code("unreachable")
    assert time.monotonic() - began < 20
    over.set()
    own_site.answer_an_honest_round()


def vars_of(record) -> dict:
    return {name: getattr(record, name) for name in record.__struct_fields__}
