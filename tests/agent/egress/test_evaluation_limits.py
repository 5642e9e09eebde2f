"""A coordinator that uses evaluations as an oracle gets one rounded answer for each run, and a bounded number a day."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from flamest.agent.egress.guard import EgressGuard
from flamest.agent.egress.ledger import Ledger, read_ledger
from flamest.agent.egress.pending_update import PendingUpdate
from flamest.agent.egress.policy import Policy, PolicyRefused
from flamest.agent.end_of_run import WITHIN_S, EndOfRun
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.tasks import DataSource, RoundWork, train_round
from flamest.agent.worker import WorkExpired
from flamest.base.clock import parse_utc, utc_text
from flamest.base.errors import DataError
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import OWN_HEAD, Evaluation, GlobalModel, Phase, Receipt, RunSettings, TaskStatus, Update
from flamest.runtime.clip_records import Clip

LABELS = ("fall", "run", "walk")
HEAD = HeadSpec(4, len(LABELS), ())
RUN = RunSettings("r", LABELS, HEAD, 3, 1, 9.0, "f", final_evaluation="model")
SITES = msgspec.structs.replace(RUN, final_evaluation="sites")
SHARING = Policy(share_for_evaluation=True)
NOON = parse_utc("2026-03-01T12:00:00Z").timestamp()


class Clock:
    def __init__(self) -> None:
        self.seconds = NOON

    def __call__(self) -> str:
        return utc_text(self.seconds)


class Died(BaseException):
    """The end of the process, in a test."""


class InlineWorker:
    """In place of the worker process; ``limits``: when each call would have been ended, on time.monotonic's clock."""

    def __init__(self, expires: bool = False) -> None:
        self.limits, self.expires = [], expires

    def call(self, function, *arguments, until):
        self.limits.append(until)
        if self.expires:
            raise WorkExpired("too late")
        return function(*arguments)


class Coordinator:
    """In place of a client: keeps what arrives, and offers a model of its choice as every subject."""

    def __init__(self, crash: bool = False, most_fetched: int = 1000) -> None:
        self.reports, self.updates, self.fetched = [], [], 0
        self.most_fetched = most_fetched  # models that a silo may fetch before this test gives up
        self.crash = crash  # the process ends when the message is on its way

    def fetch_subject(self, run, task, subject):
        self.fetched += 1
        assert self.fetched <= self.most_fetched
        return initial_params(run.head, 100 + subject)

    def send_evaluation(self, message):
        self.reports.append(message)
        if self.crash:
            raise Died

    def send_update(self, message):
        self.updates.append(message)
        return Receipt(message.header.round, message.header.update_id, message.header.payload_sha256)


class Silo:
    """A silo in one state folder; ``restarted`` is its next process."""

    def __init__(self, state: Path, store: Path, policy: Policy, clock: Clock) -> None:
        self.state, self.store, self.policy, self.clock = state, store, policy, clock
        self.guard = EgressGuard(state, policy, "a", Ledger.open(state, now=clock))
        source = DataSource(store, None, policy.hold_out, 1)
        self.end = EndOfRun(state, self.guard, InlineWorker(), source)

    def restarted(self, policy: Policy | None = None) -> Silo:
        return Silo(self.state, self.store, policy or self.policy, self.clock)

    def takes_part(self, run: RunSettings, round_number: int = 1, seed: int = 0, to: Coordinator | None = None):
        """Send an update of the run, as if trained; return its message as it arrived."""
        model = GlobalModel(round_number, initial_params(run.head, seed), f"{seed:064x}")
        evaluation = Evaluation(0.5, 48, 64) if self.policy.reports else None
        update_id = self.guard.update_id(run, round_number, model.sha256)
        update = Update(round_number, model.sha256, update_id, 300, model.params, evaluation)
        client = to or Coordinator()
        self.guard.send(client, run, PendingUpdate(run.sha256, self.policy.sha256, 300, None, update))
        return client.updates[-1]

    def evaluates(self, run: RunSettings, client: Coordinator | None = None, **changes):
        """Answer EVALUATE; return the reports that arrived."""
        client = client or Coordinator()
        self.end.evaluate(client, run, dataclasses.replace(task(run), **changes))
        return client.reports

    def lines(self, what: str = "evaluation"):
        content = read_ledger(self.state)
        assert list(content.problems) == []
        return list(content.of(what))


def task(run: RunSettings, seed: int = 100, subjects: int = 1) -> TaskStatus:
    final = params_sha256(initial_params(run.head, seed))
    return TaskStatus(Phase.EVALUATE, run.rounds, final, 0.0, 15.0, subjects=subjects)


def fill(path: Path, groups: int) -> Path:
    random = np.random.default_rng(0)
    with FeatureStore.open(path) as store:
        rows = []
        for number in range(groups):
            clip = Clip(Path(f"{number}.avi"), f"{number:064x}", LABELS[number % 3], f"g{number}")
            x = random.normal(size=4).astype(np.float32)
            rows.append((f"{number}.avi", FeatureRow(clip, x, 2, "f", "fp32")))
        store.add_rows(rows)
    return path


@pytest.fixture
def silo(tmp_path):
    def make(policy: Policy = Policy(), clips: int = 330) -> Silo:  # noqa: B008
        store = fill(tmp_path / "features.sqlite", clips)
        state = tmp_path / "state"
        state.mkdir()
        return Silo(state, store, policy, Clock())

    return make


def figures(reports):
    return [len(message.report.results) for message in reports]


def test_an_evaluation_that_the_settings_ask_for_is_reported(silo):
    made = silo()
    made.takes_part(RUN)
    (report,) = made.evaluates(RUN)
    (result,) = report.report.results
    assert (result.subject, result.evaluation.count) == (0, 66)
    (line,) = made.lines()
    assert (line.run, line.round, line.models) == ("r", 3, 1)


@pytest.mark.parametrize("asked", ["none", "another run's", "too early", "round 0"])
def test_an_evaluation_that_no_settings_ask_for_is_not_answered(silo, asked):
    made = silo()
    run = msgspec.structs.replace(RUN, final_evaluation="none") if asked == "none" else RUN
    made.takes_part(run)
    changes = {"too early": {"round": 2}, "round 0": {"round": 0}}.get(asked, {})
    if asked == "another run's":
        run = msgspec.structs.replace(RUN, final_evaluation="none", seed=7)
    client = Coordinator()
    for number in range(20):  # again and again, after restarts too, for models of the coordinator's choice
        made.evaluates(run, client, model_sha256=f"{number:064x}", **changes)
        made = made.restarted() if number % 5 == 0 else made
    assert (client.reports, client.fetched) == ([], 0)
    (line,) = made.lines("refused")
    assert line.code == "not_asked_for"


def test_a_silo_that_took_no_part_declines(silo):
    made = silo()
    made.takes_part(msgspec.structs.replace(RUN, seed=1))  # a run of the same name
    assert figures(made.evaluates(RUN)) == [0]


def test_a_silo_of_few_clips_reports_on_none(silo):
    made = silo(clips=16)
    made.takes_part(RUN)
    assert figures(made.evaluates(RUN)) == [0]


def test_a_silo_with_few_held_out_clips_reports_on_none(silo):
    made = silo(Policy(hold_out=0.05))
    made.takes_part(RUN)
    assert figures(made.evaluates(RUN)) == [0]


def test_another_model_of_the_run_is_never_evaluated(silo):
    made = silo()
    made.takes_part(RUN)
    client = Coordinator()
    made.evaluates(RUN, client)
    for number in range(20):
        made = made.restarted()
        made.evaluates(RUN, client, model_sha256=f"{number:064x}")
        made.evaluates(RUN, client, round=RUN.rounds + 1 + number)
    assert figures(client.reports) == [1]
    assert [line.code for line in made.lines("refused")] == ["evaluated_before"]


def test_after_a_crash_the_same_bytes_leave_a_few_times(silo):
    """Whatever clips have come since, and whatever the policy says now."""
    made = silo(SHARING)
    made.takes_part(SITES)
    client = Coordinator(crash=True)
    for number in range(12):
        if len(client.reports) < 5:
            with pytest.raises(Died):
                made.evaluates(SITES, client, subjects=3 + number)
        else:
            made.evaluates(SITES, client, subjects=3)
        fill(made.store, 331 + number)
        made = made.restarted(Policy(report_evaluation=False) if number % 2 else SHARING)
    assert len({message.encoded for message in client.reports}) == 1
    assert figures(client.reports) == [3] * 5
    assert client.fetched == 3


def test_a_silo_that_declined_does_not_report_later(silo):
    made = silo(Policy(report_evaluation=False))
    made.takes_part(RUN)
    client = Coordinator()
    made.evaluates(RUN, client)
    made.restarted(Policy()).evaluates(RUN, client)
    assert figures(client.reports) == [0, 0]
    assert client.fetched == 0


@pytest.mark.parametrize(
    ("run", "policy", "asked", "answered"),
    [
        (RUN, {}, 2, 1),
        (RUN, {"share_for_evaluation": True}, 2**32 - 1, 1),
        (SITES, {}, 50, 1),
        (SITES, {"share_for_evaluation": True}, 4, 4),
        (SITES, {"share_for_evaluation": True}, 2**32 - 1, 65),
        (SITES, {"share_for_evaluation": True}, 0, 0),
        (SITES, {"share_for_evaluation": True, "evaluations_per_day": 10}, 65, 9),
    ],
)
def test_other_silos_models_are_evaluated_by_consent_and_within_bounds(silo, run, policy, asked, answered):
    made = silo(Policy(**policy))
    made.takes_part(run)
    client = Coordinator(most_fetched=100)
    assert figures(made.evaluates(run, client, subjects=asked)) == [answered]
    assert client.fetched == answered


def test_the_ledger_has_every_figure_of_every_report(silo):
    made = silo(Policy(share_for_evaluation=True, report_classes=10))
    made.takes_part(SITES)
    (message,) = made.evaluates(SITES, subjects=4)
    (line,) = made.lines()
    assert tuple(result.result() for result in line.results) == message.report.results
    assert all(len(one.evaluation.by_class) == 3 for one in message.report.results)
    (update,) = made.lines("update")
    assert update.results[0].result().evaluation == Evaluation(0.5, 48, 64)


def test_reported_losses_are_no_measurement_of_a_clip(silo):
    """Five models, each turned up a thousandfold: figures of full precision would add up to equations."""
    made = silo(SHARING)
    made.takes_part(SITES)

    class Oracle(Coordinator):
        def fetch_subject(self, run, task, subject):
            params = initial_params(run.head, 100 + subject)
            return {name: (tensor * np.float32(10.0**subject)) for name, tensor in params.items()}

    (message,) = made.evaluates(SITES, Oracle(), subjects=30)
    losses = [one.evaluation.loss for one in message.report.results]
    assert len(losses) == 30
    assert all(loss == round(loss / 0.2) * 0.2 or abs(loss - round(loss / 0.2) * 0.2) < 1e-9 for loss in losses)
    assert max(losses) <= 10.2


@pytest.mark.parametrize("size", [1e30, 3e38, -3e38])
def test_models_of_huge_weights_leave_the_ledger_whole(silo, size):
    """Finite weights whose scores overflow: a loss that is no number broke the ledger, and the agent with it."""
    made = silo()
    made.takes_part(RUN)

    class Huge(Coordinator):
        def fetch_subject(self, run, task, subject):
            return {name: np.full_like(tensor, size) for name, tensor in initial_params(run.head, 0).items()}

    (message,) = made.evaluates(RUN, Huge())
    assert np.isfinite(message.report.results[0].evaluation.loss)
    assert len(made.lines()) == 1
    made.restarted()


@pytest.mark.parametrize("size", [1e30, 3e38])
def test_rounds_that_start_from_huge_weights_send_nothing_that_is_no_number(silo, size):
    made = silo()
    params = {name: np.full_like(tensor, size) for name, tensor in initial_params(HEAD, 0).items()}
    model = GlobalModel(1, params, "ab" * 32)
    source = DataSource(made.store, None, made.policy.hold_out, 1)
    try:
        outcome = train_round(source, RoundWork(RUN, "a", model, 0, made.state, made.policy))
    except DataError as error:
        outcome, code = None, error.code
    assert outcome is None or np.isfinite(outcome.evaluation.loss), code


def test_evaluations_are_counted_over_rounds_runs_and_restarts(silo):
    made = silo(Policy(evaluations_per_day=5))
    for number in range(8):
        run = msgspec.structs.replace(RUN, run=f"run-{number // 2}")
        header = made.takes_part(run, round_number=1 + number % 2).header
        assert (header.evaluation is not None) == (number < 5)
        made = made.restarted()
    assert [line.withheld for line in made.lines("update")] == [""] * 5 + ["evaluations_spent"] * 3
    assert figures(made.evaluates(msgspec.structs.replace(RUN, run="run-0"))) == [0]
    made.clock.seconds += 86_401
    made = made.restarted()
    assert made.takes_part(RUN, seed=99).header.evaluation is not None
    assert figures(made.evaluates(RUN)) == [1]


def test_a_month_of_full_days_ends_at_the_budget_of_the_month(silo):
    """Two a day, five a month: the third day gives one, the others none, until the first day is a month ago."""
    made, reported = silo(Policy(evaluations_per_day=2, evaluations_per_month=5)), []
    for day in range(32):
        run = msgspec.structs.replace(RUN, run=f"run-{day}")
        reported.append(sum(made.takes_part(run, 1 + one).header.evaluation is not None for one in range(3)))
        made.clock.seconds += 86_400
        made = made.restarted()
    assert reported == [2, 2, 1] + [0] * 27 + [2, 2]


def test_an_update_that_left_without_its_evaluation_stays_so(silo):
    made = silo(Policy(evaluations_per_day=1))
    made.takes_part(RUN, 1)
    first = made.takes_part(RUN, 2)
    made.clock.seconds += 86_401
    again = made.restarted().takes_part(RUN, 2)
    assert first.encoded_header == again.encoded_header
    assert first.header.evaluation is None


@pytest.mark.parametrize("back", [3600.0, 86_400.0 * 400])
def test_a_clock_that_jumps_back_gives_no_evaluations_and_takes_none(silo, back):
    made = silo(Policy(evaluations_per_day=3))
    for number in range(3):
        made.takes_part(RUN, seed=number)
    made.clock.seconds -= back
    made = made.restarted()
    assert made.takes_part(RUN, seed=5).header.evaluation is None
    made.clock.seconds += 86_401
    assert made.restarted().takes_part(RUN, seed=6).header.evaluation is not None


VARIED = {
    "seeds": lambda number: {"seed": number},
    "labels": lambda number: {"labels": (*LABELS[:2], f"other-{number}")},
    "bundles": lambda number: {"fingerprint": f"f-{number}"},
    "all": lambda number: {"seed": number % 3, "labels": (*LABELS[:2], f"other-{number % 2}")},
}


@pytest.mark.parametrize("varied", VARIED)
def test_runs_that_hold_out_other_clips_each_time_are_few(silo, varied):
    made, reported = silo(), []
    runs = [msgspec.structs.replace(RUN, **VARIED[varied](number)) for number in range(9)]
    for number, run in enumerate(runs):
        reported.append(made.takes_part(run, 1 + number).header.evaluation is not None)
        made = made.restarted()
    first = 6 if varied == "all" else 9  # six different runs, then the same again
    assert reported[:first] == [True] * 5 + [False] * (first - 5)
    assert made.takes_part(runs[2], 20).header.evaluation is not None
    made.clock.seconds += 31 * 86_400.0
    assert made.takes_part(runs[5], 20).header.evaluation is not None


def test_labels_in_another_order_hold_out_the_same_clips(silo):
    made = silo()
    for number in range(12):
        run = msgspec.structs.replace(RUN, run=f"run-{number}", labels=LABELS[::-1] if number % 2 else LABELS)
        assert made.takes_part(run).header.evaluation is not None


def test_an_honest_day_of_five_runs_misses_no_evaluation(silo):
    made = silo()
    for number in range(5):
        run = msgspec.structs.replace(RUN, run=f"run-{number}", rounds=79)
        assert all(made.takes_part(run, 1 + one).header.evaluation is not None for one in range(79))
        assert figures(made.evaluates(run)) == [1]


def test_a_policy_without_evaluations_sends_updates_alone(silo):
    made = silo(Policy(evaluations_per_day=0))
    assert made.takes_part(RUN).header.evaluation is None
    assert figures(made.evaluates(RUN)) == [0]


def test_rounds_without_end_stop_at_the_quotas_of_the_ledger(silo, monkeypatch):
    monkeypatch.setattr("flamest.agent.egress.quotas.LINES", 30)
    made = silo()
    client = Coordinator()
    refused = 0
    for number in range(100):
        try:
            made.takes_part(msgspec.structs.replace(RUN, run=f"run-{number}"), to=client)
        except PolicyRefused as error:
            made.guard.record_refusal(RUN, GlobalModel(1, {}, f"{number:064x}"), error)
            refused += 1
        made = made.restarted() if number % 10 == 0 else made
    assert (len(client.updates), refused) == (30, 70)
    assert [line.code for line in made.lines("refused")] == ["too_many_messages"]
    made.clock.seconds += 3601  # a part of a day adds as much
    assert made.restarted().takes_part(RUN, seed=7)


def test_a_final_evaluation_has_one_time_limit_for_all_its_models(silo):
    made, client = silo(SHARING), Coordinator()
    made.takes_part(SITES)
    made.end._worker = worker = InlineWorker()
    made.evaluates(SITES, client, subjects=5)
    assert figures(client.reports) == [5]
    assert len(set(worker.limits)) == 1
    assert 0 < worker.limits[0] - time.monotonic() <= WITHIN_S


def test_an_evaluation_that_takes_too_long_is_declined(silo):
    made, client = silo(), Coordinator()
    made.takes_part(RUN)
    made.end._worker = InlineWorker(expires=True)
    made.evaluates(RUN, client)
    assert figures(client.reports) == [0]


def test_a_comparison_that_takes_too_long_leaves_the_final_model_in_use(silo):
    made = silo(Policy(refuse_worse=True))
    made.end._worker = InlineWorker(expires=True)
    params = initial_params(HEAD, 100)
    client = SimpleNamespace(fetch=lambda *_: GlobalModel(3, params, params_sha256(params)))
    assert made.end.adopt_model(client, RUN, task(RUN)).model == "final"


def test_the_ledger_keeps_each_list_of_tensors_once_in_memory(silo):
    made = silo()
    for number in range(5):
        made.takes_part(msgspec.structs.replace(RUN, run=f"run-{number}"))
    for content in (made.guard._ledger.content, read_ledger(made.state)):
        assert len({id(entry.tensors) for entry in content.of("update")}) == 1


GAINS = msgspec.structs.replace(RUN, gains=True, rounds=1)


@pytest.mark.parametrize(
    ("run", "policy", "subjects"),
    [
        (GAINS, Policy(report_gain=True), [0, OWN_HEAD]),
        (GAINS, Policy(), [0]),
        (msgspec.structs.replace(GAINS, gains=False), Policy(report_gain=True), [0]),
        (GAINS, Policy(report_gain=True, evaluations_per_day=2), [0]),  # one left, the round's update had one
        (GAINS, Policy(report_gain=True, report_evaluation=False), []),
    ],
)
def test_a_gain_leaves_only_if_run_policy_and_quota_agree(silo, run, policy, subjects):
    made = silo(policy)
    made.takes_part(run)
    (report,) = made.evaluates(run)
    assert [one.subject for one in report.report.results] == subjects
    (line,) = made.lines()
    assert [one.subject for one in line.results] == subjects
    again = made.restarted().evaluates(run)
    assert [one.encoded for one in again] == [report.encoded], "the same is sent again"


def test_a_head_of_its_own_that_cannot_be_trained_is_left_out(silo, monkeypatch):
    def diverge(*_, **__):
        raise DataError("diverged", fix="", code="diverged")

    monkeypatch.setattr("flamest.agent.end_of_run_tasks.own_head", diverge)
    made = silo(Policy(report_gain=True))
    made.takes_part(GAINS)
    (report,) = made.evaluates(GAINS)
    assert [one.subject for one in report.report.results] == [0]


def test_heads_of_its_own_count_against_the_quotas_whatever_the_run_varies(silo):
    """Each run trains with another rate: the head is another one, its noise too, and the mean of many would tell."""
    made = silo(Policy(report_gain=True, evaluations_per_day=8))
    reported = []
    for number in range(5):
        rate = msgspec.structs.replace(GAINS.train, learning_rate=0.01 + number / 1e6)
        run = msgspec.structs.replace(GAINS, run=f"run-{number}", train=rate)
        made.takes_part(run)
        (report,) = made.evaluates(run)
        reported.append([one.subject for one in report.report.results])
        made = made.restarted()
    assert reported == [[0, OWN_HEAD], [0, OWN_HEAD], [0], [], []]
    assert sum(entry.evaluated_models for entry in read_ledger(made.state).entries) == 8


def test_an_own_head_on_few_clips_is_not_reported(silo):
    made = silo(Policy(report_gain=True, hold_out=0.05))
    made.takes_part(GAINS)
    assert figures(made.evaluates(GAINS)) == [0]


def test_the_ledger_has_the_figures_of_the_own_head_as_sent(silo):
    made = silo(Policy(report_gain=True, report_classes=10))
    made.takes_part(GAINS)
    (message,) = made.evaluates(GAINS)
    (line,) = made.lines()
    assert tuple(result.result() for result in line.results) == message.report.results
    own = message.report.results[1].evaluation
    assert (line.models, own.count, len(own.by_class)) == (2, 66, 3)
    assert own.loss == round(own.loss, 2)
