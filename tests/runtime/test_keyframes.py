"""Keyframes: one per cluster, in time order, the same for the same clip wherever it is extracted."""

import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.runtime.keyframes import (
    clip_seeds,
    draw_keyframe,
    draw_keyframes,
    pick_keyframes,
    spread_indices,
    uniform_indices,
)


def clustered(sizes, width=16, seed=0, spread=0.01):
    """Rows around as many far-apart centres as there are sizes, in time order."""
    random = np.random.default_rng(seed)
    rows = [random.normal(5 * random.normal(size=width), spread, (size, width)) for size in sizes]
    return np.concatenate(rows).astype(np.float32)


def test_each_of_eight_scenes_gives_one_frame_in_time_order():
    sizes = [1, 7, 2, 6, 4, 4, 5, 3]
    chosen = pick_keyframes(clustered(sizes), 8, seed=3)
    scene = np.repeat(np.arange(8), sizes)[chosen]
    assert scene.tolist() == list(range(8))
    assert (np.diff(chosen) > 0).all()


def test_the_frame_nearest_its_centre_is_taken():
    features = np.zeros((9, 2), np.float32)
    features[:5, 0] = [-2, -1, 0.1, 1, 2]  # centre 0.02: row 2 is nearest
    features[5:, 0] = [97, 101, 103, 99.5]  # centre 100.125: row 8
    assert pick_keyframes(features, 2, seed=0).tolist() == [2, 8]


def test_the_seed_decides_and_decides_alone():
    features = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    first = pick_keyframes(features, 8, seed=1)
    assert (pick_keyframes(features, 8, seed=1) == first).all()
    assert any((pick_keyframes(features, 8, seed=seed) != first).any() for seed in range(2, 6))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([0], [0] * 8),
        ([0, 0, 0, 0], [0] * 8),
        ([0, 1, 1, 2, 2, 0], [0, 0, 0, 1, 1, 1, 3, 3]),
        (list(range(8)), list(range(8))),
        ([0, 1, 2, 3, 4, 4, 4, 4, 4, 4], [0, 0, 1, 1, 2, 2, 3, 4]),
    ],
)
def test_fewer_distinct_frames_than_keyframes_are_repeated_in_time_order(rows, expected):
    distinct = np.random.default_rng(5).normal(size=(8, 4)).astype(np.float32)
    assert pick_keyframes(distinct[rows], 8, seed=0).tolist() == expected


def test_frames_that_differ_by_rounding_only_do_not_fail():
    features = np.repeat(clustered([1, 1, 1]), 10, axis=0)
    features[:, 0] += np.arange(30, dtype=np.float32) * 1e-6
    chosen = pick_keyframes(features, 8, seed=0)
    assert len(chosen) == 8
    assert (np.diff(chosen) >= 0).all()
    assert set(chosen // 10) == {0, 1, 2}


def test_features_that_are_not_finite_are_refused():
    features = clustered([16, 16])
    features[5, 2] = np.nan
    with pytest.raises(DataError) as caught:
        pick_keyframes(features, 8, seed=0)
    assert caught.value.code == "not_finite"


def test_the_choice_does_not_depend_on_the_number_of_threads():
    program = (
        "import numpy as np; from flamest.runtime.keyframes import pick_keyframes;"
        "x = np.random.default_rng(1).normal(size=(600, 256)).astype(np.float32);"
        "print(pick_keyframes(x, 8, 5).tolist())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(answers) == 1


def test_candidates_are_the_middles_of_equal_parts():
    assert uniform_indices(8, 4).tolist() == [1, 3, 5, 7]
    assert uniform_indices(100, 4).tolist() == [12, 37, 62, 87]
    assert uniform_indices(3, 4).tolist() == [0, 1, 2]
    assert uniform_indices(0, 4).tolist() == []
    for frames in range(33, 300):
        chosen = uniform_indices(frames, 32)
        assert len(set(chosen)) == 32
        assert 0 <= chosen.min() <= chosen.max() < frames


def test_seeds_depend_on_the_content_and_on_the_extraction_seed():
    one, other = "0" * 63 + "1", "0" * 63 + "2"
    assert clip_seeds(0, one) == clip_seeds(0, one)
    assert len({clip_seeds(0, one), clip_seeds(0, other), clip_seeds(1, one)}) == 3


def test_every_keyframe_is_drawn_as_often():
    drawn = Counter(draw_keyframe(8, clip_seeds(0, f"{clip:064x}").draw) for clip in range(4000))
    assert sorted(drawn) == list(range(8))
    assert max(abs(count - 500) for count in drawn.values()) < 100  # 4.8 standard deviations


def test_several_drawn_keyframes_are_different_and_spread_from_the_first():
    assert draw_keyframes(8, 1, seed=5) == (draw_keyframe(8, 5),)
    for seed in range(20):
        first = draw_keyframe(8, seed)
        assert draw_keyframes(8, 4, seed) == tuple((first + step) % 8 for step in (0, 2, 4, 6))
        for captioned in range(1, 9):
            assert len(set(draw_keyframes(8, captioned, seed))) == captioned


def test_rows_are_spread_evenly_and_repeated_in_time_order_when_too_few():
    assert spread_indices(32, 8).tolist() == [2, 6, 10, 14, 18, 22, 26, 30]
    assert spread_indices(3, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert spread_indices(1, 4).tolist() == [0] * 4


def test_clustering_in_threads_leaves_the_process_unchanged(monkeypatch):
    """Warning filters and thread pools belong to the process, not to a thread."""
    inside, most = [], []

    class Slow:
        def __init__(self, count, **_):
            self._count = count

        def fit(self, points):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            self.labels_ = np.arange(len(points)) % self._count
            self.cluster_centers_ = points[: self._count]
            return self

    monkeypatch.setattr("flamest.runtime.keyframes.load_clustering", lambda: Slow)
    filters = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: pick_keyframes(clustered([4] * 8, seed=seed), 8, seed), range(8)))
    assert max(most) == 1
    assert list(warnings.filters) == filters
