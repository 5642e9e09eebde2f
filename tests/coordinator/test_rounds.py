"""The round state machine: its rules one by one, then random histories against a reference model."""

from dataclasses import replace

import pytest
from flamest.base.errors import InvariantError
from flamest.coordinator.rounds import (
    Cohort,
    Decision,
    RoundPolicy,
    Submission,
    UpdateSummary,
    Verdict,
    after_abandon,
    after_close,
    on_contact,
    on_leave,
    on_tick,
    on_update,
    resumed,
    start_run,
    status_for,
)
from flamest.fedproto.records import Phase
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

POLICY = RoundPolicy(rounds=2, min_silos=2, deadline_s=10.0)


def cohort(count: int, silos: str = "abcd") -> Cohort:
    """``count`` reports are wanted, of so many silos."""
    return Cohort(frozenset(silos[:count] if count < len(silos) else silos), count)


def started(policy: RoundPolicy = POLICY, wanted: int = 3):
    return start_run(policy, "model-0", cohort(wanted))


def submission(
    silo: str, number: int = 1, base: str = "model-0", update_id: str | None = None, digest: str = "d"
) -> Submission:
    return Submission(number, base, UpdateSummary(silo, update_id or f"id-{silo}-{number}", 5, digest))


def with_reports(*silos: str, state=None, now: float = 0.0):
    state = state or started()
    for silo in silos:
        state, verdict = on_update(state, submission(silo, state.open.number, state.model_sha256), None, now)
        assert verdict is Verdict.ACCEPTED
    return state


def test_silo_gets_the_open_round_once():
    state = on_contact(started(), "a", 0, now=100.0)
    assert status_for(state, "a", 0, 100.0).phase is Phase.OPEN
    state = with_reports("a", state=state, now=101.0)
    assert status_for(state, "a", 0, 101.0).phase is Phase.WAIT
    assert status_for(state, "b", 0, 101.0).phase is Phase.OPEN


def test_deadline_runs_from_the_first_silo_that_gets_the_round():
    state = started()
    assert on_tick(state, 1e9) is Decision.COLLECT
    assert status_for(state, "a", 0, 1e9).deadline_s == 10.0
    state = on_contact(state, "a", 0, now=100.0)
    assert status_for(state, "b", 0, 104.0).deadline_s == 6.0
    state = on_contact(state, "b", 0, now=109.0)
    assert (on_tick(state, 109.9), on_tick(state, 110.0)) == (Decision.COLLECT, Decision.ABANDON)


def test_a_round_closes_when_all_wanted_have_reported():
    assert on_tick(with_reports("a", "b"), 1.0) is Decision.COLLECT
    assert on_tick(with_reports("a", "b", "c"), 1.0) is Decision.CLOSE


def test_at_the_deadline_the_minimum_is_enough():
    assert on_tick(with_reports("a", "b"), 10.0) is Decision.CLOSE
    assert on_tick(with_reports("a"), 10.0) is Decision.ABANDON


def test_silo_that_declines_is_not_awaited():
    state = with_reports("a", "b")
    assert on_tick(on_contact(state, "c", 1, now=1.0), 1.0) is Decision.CLOSE


def test_status_names_the_last_closed_round_with_the_silos_update():
    state = after_close(with_reports("a", "b", state=started(RoundPolicy(9, 2, 10.0))), "model-1", cohort(3))
    state = after_abandon(with_reports("a", state=state), cohort(3))  # what it sent in round 2 does not count
    assert [status_for(state, silo, 0, 0.0).counted for silo in "abc"] == [1, 1, 0]
    state = after_close(with_reports("b", "c", state=state), "model-3", cohort(3))
    assert [status_for(state, silo, 0, 0.0).counted for silo in "abc"] == [1, 3, 3]


def test_wanted_reports_close_a_round_and_declines_do_not_lower_them():
    four = start_run(POLICY, "model-0", Cohort(frozenset("abcd"), 3))
    state = on_contact(with_reports("a", "b", state=four), "c", 1, now=1.0)
    assert on_tick(state, 1.0) is Decision.COLLECT  # d may still come
    assert on_tick(with_reports("d", state=state), 1.0) is Decision.CLOSE


@pytest.mark.parametrize(
    ("wanted", "share", "expected"), [(None, None, 10), (3, None, 3), (None, 0.75, 8), (None, 0.1, 2), (None, 0.3, 3)]
)
def test_wanted_is_a_number_or_share_and_at_least_the_minimum(wanted, share, expected):
    assert Cohort.call(frozenset("abcdefghij"), wanted, share, 2).wanted == expected


def test_silo_that_leaves_is_not_awaited_and_its_report_stays():
    state = on_leave(with_reports("a", "b"), frozenset("bc"))
    assert on_tick(state, 1.0) is Decision.CLOSE
    assert list(state.open.accepted) == ["a", "b"]


def test_silo_that_joins_during_a_round_may_report():
    state = on_contact(with_reports("a", "b"), "z", 1, now=1.0)
    assert on_tick(state, 1.0) is Decision.COLLECT  # z declines, c is still to come
    assert on_tick(with_reports("z", state=state), 1.0) is Decision.CLOSE


def test_declining_does_not_lower_the_minimum():
    state = with_reports("a")
    for silo in "bc":
        state = on_contact(state, silo, 1, now=1.0)
    assert on_tick(state, 1.0) is Decision.COLLECT


def test_a_silo_that_declined_may_still_report():
    state = with_reports("c", state=on_contact(started(), "c", 1, now=0.0))
    assert state.open.declined == frozenset()
    assert list(state.open.accepted) == ["c"]


def test_after_a_close_the_next_round_opens_from_the_new_model():
    state = after_close(with_reports("a", "b", "c"), "model-1", cohort(4))
    assert (state.open.number, state.open.cohort.wanted, state.closed, state.last_round) == (2, 4, 1, 1)
    assert not state.open.accepted
    assert state.open.deadline is None
    assert status_for(state, "a", 1, 0.0).phase is Phase.OPEN


def test_after_the_last_round_the_run_is_finished():
    state = after_close(with_reports("a"), "model-1", cohort(3))
    state = after_close(with_reports("a", state=state), "model-2", cohort(3))
    assert state.open is None
    assert status_for(state, "a", 0, 0.0).phase is Phase.FINISHED
    assert on_tick(state, 1e9) is Decision.COLLECT
    assert on_update(state, submission("a", 2, "model-1"), None, 0.0)[1] is Verdict.STALE_ROUND


def test_abandoned_round_uses_a_number_and_keeps_the_model():
    state = after_abandon(with_reports("a"), cohort(3))
    assert (state.open.number, state.closed, state.model_sha256, state.last_round) == (2, 0, "model-0", 1)
    assert status_for(state, "a", 1, 0.0).phase is Phase.OPEN


@pytest.mark.parametrize(
    ("sent", "now", "verdict"),
    [
        (submission("b", number=0), 1.0, Verdict.STALE_ROUND),
        (submission("b", number=2), 1.0, Verdict.STALE_ROUND),
        (submission("b", base="model-9"), 1.0, Verdict.STALE_BASE),
        (submission("b"), 10.0, Verdict.LATE),
        (submission("b"), 9.9, Verdict.ACCEPTED),
    ],
)
def test_only_an_update_for_this_round_and_model_in_time_counts(sent, now, verdict):
    before = with_reports("a")
    after, found = on_update(before, sent, None, now)
    assert found is verdict
    assert (after == before) is (verdict is not Verdict.ACCEPTED)


@pytest.mark.parametrize(
    ("sent", "verdict"),
    [
        (submission("a"), Verdict.DUPLICATE),
        (submission("a", digest="other"), Verdict.REUSED_ID),
        (submission("a", update_id="id-2"), Verdict.ALREADY_ANSWERED),
    ],
)
def test_a_second_update_of_a_silo_never_counts(sent, verdict):
    before = with_reports("a")
    assert on_update(before, sent, before.open.accepted["a"], 1.0) == (before, verdict)


def test_duplicate_is_recognised_after_the_round_closed():
    closed = with_reports("a", "b", "c")
    after = after_close(closed, "model-1", cohort(3))
    assert on_update(after, submission("a"), closed.open.accepted["a"], 1.0) == (after, Verdict.DUPLICATE)
    assert on_update(after, submission("z"), None, 1.0)[1] is Verdict.STALE_ROUND


def test_deadline_runs_after_a_restart_if_there_are_reports():
    read = replace(with_reports("a"), open=replace(with_reports("a").open, deadline=None))
    assert resumed(read, 50.0).open.deadline == 60.0
    assert resumed(started(), 50.0).open.deadline is None


def test_ending_a_finished_run_is_an_invariant_error():
    state = replace(started(), open=None)
    with pytest.raises(InvariantError):
        after_close(state, "m", cohort(1))
    with pytest.raises(InvariantError):
        after_abandon(state, cohort(1))


SILOS = st.sampled_from(["a", "b", "c", "d"])


class AnyHistory(RuleBasedStateMachine):
    """Silos join, leave, ask, send, resend, cheat; time passes; the server stops and starts.

    The reference model is plain sets and dictionaries of silos enrolled, accepted and counted.
    """

    @initialize(
        rounds=st.integers(1, 3),
        min_silos=st.integers(1, 3),
        wanted=st.none() | st.integers(1, 4),
        share=st.floats(0.1, 1.0),
        deadline=st.floats(0.5, 5.0),
        enrolled=st.frozensets(SILOS),
    )
    def begin(self, rounds, min_silos, wanted, share, deadline, enrolled):
        self.policy = RoundPolicy(rounds, min_silos, deadline)
        self.wanted, self.share, self.enrolled = wanted, share, enrolled
        self.state = start_run(self.policy, "m0", self.call())
        self.opened_for = enrolled
        self.gone = set()  # of the open round's cohort: left, or declined
        self.now = 0.0
        self.rows = {}  # (round, silo) -> Report: the database
        self.base = {1: "m0"}
        self.counted = {}  # round -> silos, of closed rounds

    def call(self):
        return Cohort.call(self.enrolled, self.wanted, None if self.wanted else self.share, self.policy.min_silos)

    @rule(silo=SILOS)
    def join(self, silo):
        self.enrolled |= {silo}

    @rule(silo=SILOS)
    def leave(self, silo):
        self.enrolled -= {silo}
        self.state = on_leave(self.state, frozenset({silo}))
        if self.state.open and (self.state.open.number, silo) not in self.rows:
            self.gone.add(silo)

    @rule(silo=SILOS, answered=st.integers(0, 6))
    def ask(self, silo, answered):
        if self.state.open and (self.state.open.number, silo) not in self.rows:
            (self.gone.add if answered >= self.state.open.number else self.gone.discard)(silo)
        self.state = on_contact(self.state, silo, answered, self.now)
        status = status_for(self.state, silo, answered, self.now)
        if status.phase is Phase.OPEN:
            assert status.round == self.state.open.number > answered
            assert (status.round, silo) not in self.rows
            assert 0 < status.deadline_s <= self.policy.deadline_s
        assert (status.phase is Phase.FINISHED) == (self.state.open is None)

    @rule(
        silo=SILOS,
        number=st.integers(-1, 1),
        uid=st.sampled_from(["x", "y"]),
        digest=st.sampled_from(["p", "q"]),
        honest=st.booleans(),
    )
    def send(self, silo, number, uid, digest, honest):
        current = self.state.open.number if self.state.open else self.state.last_round
        number += current
        base = self.base.get(number, "none") if honest else "forged"
        known = self.rows.get((number, silo))
        before = self.state
        self.state, verdict = on_update(
            before, Submission(number, base, UpdateSummary(silo, uid, 3, digest)), known, self.now
        )
        if verdict is Verdict.ACCEPTED:
            assert known is None
            assert before.open is not None
            assert (number, base) == (before.open.number, before.model_sha256)
            self.rows[number, silo] = self.state.open.accepted[silo]
            self.gone.discard(silo)
        else:
            assert self.state == before
        if verdict is Verdict.DUPLICATE:
            assert (known.update_id, known.digest) == (uid, digest)

    @rule(seconds=st.floats(0.0, 3.0))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def tick(self):
        decision, before = on_tick(self.state, self.now), self.state
        if decision is Decision.CLOSE:
            assert len(before.open.accepted) >= self.policy.min_silos
            assert self.complete() or self.now >= before.open.deadline
            self.counted[before.open.number] = set(before.open.accepted)
            self.state = after_close(before, f"m{before.open.number}", self.call())
        elif decision is Decision.ABANDON:
            assert len(before.open.accepted) < self.policy.min_silos
            assert self.now >= before.open.deadline
            self.state = after_abandon(before, self.call())
            assert self.state.model_sha256 == before.model_sha256
        elif before.open:
            assert not (self.complete() and len(before.open.accepted) >= self.policy.min_silos)
            assert before.open.deadline is None or self.now < before.open.deadline
        if decision is not Decision.COLLECT and self.state.open:
            self.base[self.state.open.number] = self.state.model_sha256
            self.opened_for, self.gone = self.enrolled, set()

    def complete(self):
        """Return whether enough silos have reported, or all that can still report."""
        reported = self.state.open.accepted.keys()
        return len(reported) >= self.state.open.cohort.wanted or self.opened_for - self.gone <= reported

    @rule()
    def restart(self):
        if self.state.open:
            number = self.state.open.number
            self.opened_for, self.gone = self.enrolled, set()
            read = replace(
                self.state.open,
                cohort=Cohort(self.enrolled, self.state.open.cohort.wanted),
                deadline=None,
                declined=frozenset(),
                accepted={silo: report for (at, silo), report in self.rows.items() if at == number},
            )
            self.state = resumed(replace(self.state, open=read), self.now)

    @invariant()
    def the_reports_are_the_rows(self):
        if self.state.open:
            number = self.state.open.number
            assert dict(self.state.open.accepted) == {s: r for (at, s), r in self.rows.items() if at == number}

    @invariant()
    def rounds_are_counted_and_numbered(self):
        assert self.state.closed == len(self.counted) <= self.policy.rounds
        assert (self.state.open is None) == (self.state.closed == self.policy.rounds)
        if self.state.open:
            assert self.state.open.number == self.state.last_round + 1

    @invariant()
    def a_round_with_reports_has_a_deadline(self):
        if self.state.open and self.state.open.accepted:
            assert self.state.open.deadline is not None


ANY = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = ANY


@pytest.mark.soak
def test_two_thousand_histories():
    """2,000 histories of 50 steps."""
    run_state_machine_as_test(AnyHistory, settings=settings(ANY, max_examples=2000))
