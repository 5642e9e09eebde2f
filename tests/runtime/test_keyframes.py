"""Keyframes: one per cluster, in time order, the same for the same clip wherever it is extracted."""

import os
import subprocess
import sys
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.runtime import keyframes
from flamest.runtime.keyframes import (
    clip_seeds,
    draw_keyframe,
    draw_keyframes,
    load_clustering,
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


def reference(features, count, seed):
    """The clustering alone in the process: warnings caught, every thread pool on one thread."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    points = features.astype(np.float64)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        found = KMeans(count, init="k-means++", n_init=1, random_state=seed, algorithm="lloyd").fit(points)
    distance = ((points - found.cluster_centers_[found.labels_]) ** 2).sum(axis=1)
    of = [np.flatnonzero(found.labels_ == cluster) for cluster in np.unique(found.labels_)]
    return np.sort(np.resize(np.sort([members[distance[members].argmin()] for members in of]), count))


def cases(number):
    """Features of independent frames, of slowly changing ones, of nearly equal ones, and of more than 256 frames."""
    random = np.random.default_rng(7)
    for index in range(number):
        rows, width = [(32, 512), (32, 256), (32, 40), (300, 16)][index % 4]
        features = random.normal(size=(rows, width))
        if index % 4 == 1:
            features = 5 + np.cumsum(features, axis=0) / 10
        if index % 4 == 2:
            features = np.repeat(features[: 2 + index % 9], 20, axis=0)[:rows]
            features += random.normal(size=features.shape) * 10.0 ** -random.integers(3, 9)
        yield features.astype(np.float32), (8, 16, 3)[index % 3], int(random.integers(1 << 32))


def thread_limits():
    """Of the pools that clustering uses; other tests may have loaded more."""
    load_clustering()
    return sorted((each["filepath"], each["num_threads"]) for each in keyframes._thread_pools().info())


def test_eight_threads_cluster_as_scikit_learn_does_alone():
    """And leave the process as it was: warning filters and the threads of BLAS belong to all."""
    given = list(cases(200))
    expected = [reference(*case).tolist() for case in given]
    filters, limits = list(warnings.filters), thread_limits()
    with ThreadPoolExecutor(8) as pool:
        found = [chosen.tolist() for chosen in pool.map(lambda case: pick_keyframes(*case), given)]
    assert found == expected
    assert list(warnings.filters) == filters
    assert thread_limits() == limits


class Meeting:
    """A clustering that waits inside until ``threads`` are there, and reports what it found there."""

    def __init__(self, threads):
        self._all_here = threading.Barrier(threads)
        self.limits = []

    def __call__(self, count, **_):
        self._count = count
        return self

    def fit(self, points):
        self._all_here.wait(timeout=60)
        self.limits += [number for _, number in thread_limits()]
        self.labels_ = np.arange(len(points)) % self._count
        self.cluster_centers_ = points[: self._count]
        return self


def test_clips_are_clustered_at_once_each_with_one_thread(monkeypatch):
    meeting = Meeting(4)
    monkeypatch.setattr("flamest.runtime.keyframes.load_clustering", lambda: meeting)
    filters, limits = list(warnings.filters), thread_limits()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: pick_keyframes(clustered([4] * 8, seed=seed), 8, seed), range(8)))
    assert set(meeting.limits) == {1}
    assert list(warnings.filters) == filters
    assert thread_limits() == limits


def test_a_clustering_that_fails_leaves_the_process_unchanged(monkeypatch):
    class Failing:
        def __init__(self, count, **_):
            pass

        def fit(self, points):
            raise MemoryError

    monkeypatch.setattr("flamest.runtime.keyframes.load_clustering", lambda: Failing)
    filters, limits = list(warnings.filters), thread_limits()
    with pytest.raises(MemoryError):
        pick_keyframes(clustered([4] * 8), 8, 0)
    assert list(warnings.filters) == filters
    assert thread_limits() == limits


def test_warning_filters_set_meanwhile_stay(monkeypatch):
    class Filtering:
        def __init__(self, count, **_):
            self._count = count

        def fit(self, points):
            warnings.filterwarnings("ignore", "set by another thread")
            self.labels_ = np.arange(len(points)) % self._count
            self.cluster_centers_ = points[: self._count]
            return self

    monkeypatch.setattr("flamest.runtime.keyframes.load_clustering", lambda: Filtering)
    with warnings.catch_warnings():
        pick_keyframes(clustered([4] * 8), 8, 0)
        assert warnings.filters[0][1].pattern == "set by another thread"
