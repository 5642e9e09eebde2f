"""Pauses of a silo whose coordinator repeats itself, on a simulated clock."""

import pytest
from flamest.agent.egress.entry import Entry
from flamest.agent.egress.ledger import RESERVED
from flamest.agent.egress.quotas import BYTES, BYTES_PER_DAY, LINES, LINES_PER_DAY, Quotas
from flamest.agent.pauses import (
    FORGIVEN_S,
    PAUSE_S,
    ROUND_EVERY_S,
    ROUNDS_AT_ONCE,
    GrowingPause,
    RoundAllowance,
    RunProgress,
)
from flamest.base.clock import utc_text

DAY_S = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_coordinator_that_repeats_itself_all_day_is_answered_once_a_minute():
    clock = Clock()
    pauses, answers = GrowingPause(clock), 0
    while clock.now < DAY_S:
        clock.now += pauses.pause_s()
        answers += 1
    assert answers < 1.3 * DAY_S / PAUSE_S[1]


def test_a_single_event_costs_a_second_and_is_forgiven():
    clock = Clock()
    pauses = GrowingPause(clock)
    for _ in range(5):
        assert 0.8 <= pauses.pause_s() <= 1.2
        clock.now += 1.1 * FORGIVEN_S
    for _ in range(20):
        pauses.pause_s()
    assert 0.8 * PAUSE_S[1] <= pauses.pause_s() <= 1.2 * PAUSE_S[1]
    pauses.forgive()
    assert pauses.pause_s() <= 1.2


def test_rounds_of_an_honest_run_have_no_pause_between_them():
    allowance = RoundAllowance(Clock())
    assert {allowance.pause_s() for _ in range(ROUNDS_AT_ONCE)} == {0.0}


def test_rounds_without_end_are_bounded_for_a_day():
    clock = Clock()
    allowance, rounds = RoundAllowance(clock), 0
    while clock.now < DAY_S:
        clock.now += 0.001 + allowance.pause_s()
        rounds += 1
    assert rounds < ROUNDS_AT_ONCE + 1.1 * DAY_S / ROUND_EVERY_S


LINE = 1051  # bytes, of an update of the paper's head


class Silo:
    """A daemon's pauses between rounds and its ledger's quotas, as ``_Daemon._open_round`` combines them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.quotas, self.allowance = Quotas(self.clock), RoundAllowance(self.clock)
        self.lines = self.refused = 0

    def answer(self, takes_s: float, size: int) -> float:
        """Answer a round and return the pause after it."""
        self.clock.now += takes_s
        time = utc_text(1e9 + self.clock.now)
        if not self.quotas.has_room(max(size, RESERVED), time):
            self.refused += 1
        else:
            entry = Entry(1, time, "update", "0" * 64)
            self.quotas.note(entry, size, new=True, live=True)
            self.lines += 1
        pause = max(self.allowance.pause_s(), self.quotas.pause_s(time))
        self.clock.now += pause
        return pause

    def restart(self) -> None:
        self.allowance = RoundAllowance(self.clock)


@pytest.mark.parametrize("size", [LINE, 1731])
def test_a_round_a_second_for_ten_hours_has_no_pause(size):
    silo = Silo()
    assert {silo.answer(1.0, size) for _ in range(36_000)} == {0.0}
    assert silo.refused == 0


@pytest.mark.parametrize("size", [300, LINE, 6_000])
@pytest.mark.parametrize("takes_s", [0.01, 1.0])
@pytest.mark.parametrize("restarts", [False, True])
def test_rounds_without_end_are_slowed_down_before_one_is_refused(size, takes_s, restarts):
    silo, days = Silo(), 4
    while silo.clock.now < days * DAY_S:
        silo.answer(takes_s, size)
        if restarts and silo.lines % 1000 == 0:
            silo.restart()
    assert silo.refused == 0
    assert silo.lines <= LINES + 2.2 * days * LINES_PER_DAY
    assert silo.lines * size <= BYTES + 2.2 * days * BYTES_PER_DAY


@pytest.mark.parametrize(("numbers", "again"), [([1, 2, 3], [0, 0, 0]), ([5, 5, 4, 6], [0, 1, 1, 0])])
def test_rounds_that_were_answered_before_are_known(numbers, again):
    progress = RunProgress("run")
    assert [progress.note_round(number) for number in numbers] == again
    progress.note_outage(1)
    assert progress.round == 0
    assert progress.note_round(max(numbers))
