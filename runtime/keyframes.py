"""Choice of the keyframes of a clip (paper eq. 3), and of the one that is captioned (eq. 4).

Both use a seed made from the manifest's extraction seed and the clip's content, so that a repeated extraction gives
the same embedding.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, MissingExtra

Indices = npt.NDArray[np.int64]
# The start of scikit-learn's warning of fewer clusters than requested; "(?:)" makes the filter equal to no other.
_FEWER_CLUSTERS = "(?:)Number of distinct clusters"


@dataclass(frozen=True)
class ClipSeeds:
    """The random choices of one clip's extraction."""

    clusters: int  # starts k-means; 32 bits
    draw: int  # draws the captioned keyframe; 128 bits


def clip_seeds(extraction_seed: int, clip_sha256: str) -> ClipSeeds:
    """Seeds from the manifest's extraction seed and the clip's SHA-256 (64 hexadecimal digits)."""
    words = np.random.SeedSequence([extraction_seed, int(clip_sha256, 16)]).generate_state(5)
    return ClipSeeds(int(words[0]), int.from_bytes(words[1:].tobytes(), "little"))


def uniform_indices(frames: int, count: int) -> Indices:
    """Frames in the middle of ``count`` equal parts of a clip of ``frames`` frames; all of them when fewer."""
    if frames <= count:
        return np.arange(frames)
    return spread_indices(frames, count)


def spread_indices(candidates: int, count: int) -> Indices:
    """``count`` rows spread evenly over ``candidates`` rows, int64 [count], not decreasing; repeated when too few."""
    return (2 * np.arange(count) + 1) * candidates // (2 * count)


def draw_keyframe(count: int, seed: int) -> int:
    """Draw one of ``count`` keyframes uniformly (paper eq. 4)."""
    return int(np.random.Generator(np.random.PCG64(seed)).integers(count))


def draw_keyframes(count: int, captioned: int, seed: int) -> tuple[int, ...]:
    """Draw ``captioned`` of ``count`` keyframes: first ``draw_keyframe``'s, then evenly spaced after it."""
    first = draw_keyframe(count, seed)
    return tuple((first + index * count // captioned) % count for index in range(captioned))


def pick_keyframes(features: npt.NDArray[np.float32], count: int, seed: int) -> Indices:
    """Cluster frames by k-means and take each cluster's frame nearest its centre (docs/paper.md, reading 4).

    ``features``: float32 [N, C], a row per candidate frame in time order. Returns int64 [count],
    not decreasing. With fewer distinct frames than ``count`` every distinct one is taken and some
    are repeated. Raises DataError when a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise DataError(
            "the keyframe graph's output for this clip is not finite",
            fix="try --backend onnxruntime without --precision; if it stays, export the bundle again",
            code="not_finite",
        )
    distinct = _distinct(features)
    chosen = distinct if len(distinct) <= count else _nearest_to_centres(features, count, seed)
    return np.sort(np.resize(chosen, count))


def _distinct(features: npt.NDArray[np.float32]) -> Indices:
    """Indices of the first of equal rows (np.unique over rows takes half as long as the clustering)."""
    first: dict[bytes, int] = {}
    for index, row in enumerate(features + np.float32(0.0)):  # -0.0 is 0.0
        first.setdefault(row.tobytes(), index)
    return np.fromiter(first.values(), np.int64)


def _nearest_to_centres(features: npt.NDArray[np.float32], count: int, seed: int) -> Indices:
    """One frame per k-means cluster: ``count``, or fewer where frames nearly coincide."""
    points = features.astype(np.float64)
    found = _clustered(points, count, seed)
    distance = ((points - found.cluster_centers_[found.labels_]) ** 2).sum(axis=1)
    chosen = []
    for cluster in np.unique(found.labels_):
        members = np.flatnonzero(found.labels_ == cluster)
        chosen.append(members[distance[members].argmin()])
    return np.sort(np.array(chosen, dtype=np.int64))


def _clustered(points: npt.NDArray[np.float64], count: int, seed: int) -> Any:
    """A fitted KMeans. Several threads may be in here at once; each computes with one thread.

    Sums have one order on every machine so, and 32 frames are too little work for more.
    """
    clustering = load_clustering()
    import sklearn

    # OpenMP's number of threads and scikit-learn's settings belong to this thread, the rest to the process.
    with (
        _PROCESS_SETTINGS.held(),
        _thread_pools().select(user_api="openmp").limit(limits=1),
        sklearn.config_context(assume_finite=True, skip_parameter_validation=True),
    ):
        return clustering(count, init="k-means++", n_init=1, random_state=seed, algorithm="lloyd").fit(points)


def load_clustering() -> Any:
    """Import scikit-learn's KMeans, which takes a second: an extractor does it before the first clip.

    Raises MissingExtra when it is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise MissingExtra("scikit-learn", extra="agent") from error
    return KMeans


@functools.cache
def _thread_pools() -> Any:
    """The loaded thread pools, found once: that takes longer than the clustering."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextlib.contextmanager
def _quiet_on_one_blas_thread() -> Iterator[None]:
    """Settings of the whole process while a thread clusters.

    KMeans itself sets and restores the number of BLAS threads, once per call: two threads doing that at once would
    leave the process on one thread, unless it is on one thread all the while.
    """
    from sklearn.exceptions import ConvergenceWarning

    with _thread_pools().select(user_api="blas").limit(limits=1):
        # Fewer clusters than requested: frames that differ by rounding only. They are repeated.
        warnings.filterwarnings("ignore", _FEWER_CLUSTERS, ConvergenceWarning)
        try:
            yield
        finally:  # only this filter is removed: others may have changed the list meanwhile
            filters: Any = warnings.filters
            filters[:] = [each for each in filters if not _is_ours(each)]


def _is_ours(warning_filter: tuple[Any, ...]) -> bool:
    return getattr(warning_filter[1], "pattern", None) == _FEWER_CLUSTERS


class _SharedContext:
    """A context of the whole process: entered with the first of the threads that hold it, left with the last.

    Both happen in a thread of its own: threadpoolctl lets only the thread that has set a limit take it back.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flamest-clustering")
        self._lock = threading.Lock()
        self._holders = 0
        self._entered = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                self._thread.submit(self._entered.enter_context, self._make()).result()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._thread.submit(self._entered.close).result()


_PROCESS_SETTINGS = _SharedContext(_quiet_on_one_blas_thread)
