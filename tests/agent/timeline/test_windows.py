"""Windows over a video: they cover it without overlap of what they stand for, at every length and rate."""

import itertools

import numpy as np
import pytest
from flamest.agent.timeline.windows import WindowPlan, count_windows, sliding_windows, window_plan
from flamest.base.errors import UsageError
from flamest.runtime.clip_records import Segment


def frames(seconds, rate):
    """Times of the frames in microseconds, and where the last one ends."""
    number = round(seconds * rate)
    return (np.arange(number) * 1e6 / rate).astype(np.int64), round(number * 1e6 / rate)


@pytest.mark.parametrize("rate", [1, 7.3, 23.976, 25, 59.94])
@pytest.mark.parametrize("seconds", [3.0, 3.1, 4.4, 6.0, 31.7])
@pytest.mark.parametrize("plan", [window_plan(3), window_plan(2, 2), window_plan(3, 0.7)], ids=str)
def test_windows_are_whole_in_order_and_their_stretches_cover_the_video(seconds, rate, plan):
    t_us, end_us = frames(seconds, rate)
    found = list(sliding_windows(t_us, end_us, plan))
    assert len(found) == count_windows(t_us, end_us, plan)
    assert (found[0].shown.start_us, found[0].stretch.start_us) == (0, 0)
    assert found[-1].shown.end_us == found[-1].stretch.end_us == end_us
    assert {window.shown.end_us - window.shown.start_us for window in found} == {min(plan.length_us, end_us)}
    for one, other in itertools.pairwise(found):
        assert 0 < other.shown.start_us - one.shown.start_us <= plan.stride_us
        assert one.stretch.end_us == other.stretch.start_us, "no gap, no overlap"
        assert one.shown.start_us <= one.stretch.start_us < one.stretch.end_us <= one.shown.end_us
        overlaps = other.shown.start_us < one.shown.end_us
        assert one.next_us == (other.shown.start_us if overlaps else None)
    assert found[-1].next_us is None


@pytest.mark.parametrize("seconds", [0.04, 1.0, 2.96, 3.0])
def test_a_video_no_longer_than_a_window_is_one(seconds):
    t_us, end_us = frames(seconds, 25)
    [only] = sliding_windows(t_us, end_us, window_plan(3))
    assert only.shown == only.stretch == Segment(0, end_us)


def test_one_frame_more_than_a_window_makes_two():
    t_us, end_us = frames(3.04, 25)
    first, second = sliding_windows(t_us, end_us, window_plan(3))
    assert (first.shown, second.shown) == (Segment(0, 3_000_000), Segment(40_000, 3_040_000))
    assert first.stretch.end_us == second.stretch.start_us == 1_520_000


def test_stretches_without_a_frame_are_skipped_in_one_step():
    early, end_us = frames(10, 25)
    late = early + 40 * 365 * 86400 * 1_000_000  # forty years of nothing between them
    t_us, end_us = np.concatenate([early, late]), int(late[-1]) + 40_000
    found = list(sliding_windows(t_us, end_us, window_plan(3)))
    assert len(found) < 20
    for window in found:
        inside = (t_us >= window.shown.start_us) & (t_us < window.shown.end_us)
        assert inside.any()
    gaps = [b.stretch.start_us - a.stretch.end_us for a, b in itertools.pairwise(found)]
    assert sum(gap > 0 for gap in gaps) == 1
    assert min(gaps) == 0


def test_every_frame_of_an_uneven_video_is_in_a_window():
    random = np.random.default_rng(0)
    t_us = np.cumsum(random.choice([20_000, 40_000, 900_000, 7_000_000], 400, p=[0.5, 0.4, 0.08, 0.02]))
    t_us -= t_us[0]
    found = list(sliding_windows(t_us, int(t_us[-1]) + 40_000, WindowPlan(2_000_000, 700_000)))
    shown = np.zeros(len(t_us), bool)
    for window in found:
        inside = (t_us >= window.shown.start_us) & (t_us < window.shown.end_us)
        assert inside.any()
        shown |= inside
    assert shown.all()


@pytest.mark.parametrize("lengths", [(0.01, None), (1e9, None), (3, 0), (3, 0.2), (3, 4), (float("nan"), None)])
def test_lengths_that_make_no_sense_are_refused_with_a_cure(lengths):
    with pytest.raises(UsageError) as caught:
        window_plan(*lengths)
    assert caught.value.fix
