"""Pauses of a silo whose coordinator repeats itself, on a simulated clock."""

import pytest
from flamest.agent.pauses import (
    FORGIVEN_S,
    PAUSE_S,
    ROUND_EVERY_S,
    ROUNDS_AT_ONCE,
    GrowingPause,
    RoundAllowance,
    RunProgress,
)

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


@pytest.mark.parametrize(("numbers", "again"), [([1, 2, 3], [0, 0, 0]), ([5, 5, 4, 6], [0, 1, 1, 0])])
def test_rounds_that_were_answered_before_are_known(numbers, again):
    progress = RunProgress("run")
    assert [progress.note_round(number) for number in numbers] == again
    progress.note_outage(1)
    assert progress.round == 0
    assert progress.note_round(max(numbers))
