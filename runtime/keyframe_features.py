"""Graph ``keyframes``, shared by the readers: features of a clip's candidate frames, for k-means (paper eq. 3).

On the host a run takes one clip, on all cores. On a device it takes the candidates of all clips that wait, and its
number of frames is rounded up so that few shapes occur: 1, 2, 4, 8, … clips' worth.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.session import Session, check_shape
from .clip_records import Candidates
from .pipeline_options import rounded_up

Features = npt.NDArray[np.float32]


@dataclass(eq=False)
class _Request:
    """One clip's candidates and their features. ``turn`` is set when they are there, or when the thread that made this
    request is to run the graph."""

    pixels: npt.NDArray[Any]
    turn: threading.Event = field(default_factory=threading.Event)
    features: Features | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.features is not None or self.error is not None


class KeyframeFeatures:
    """Any number of threads. ``clips``: the most in one run on a device; ``candidates``: frames of a whole clip."""

    def __init__(self, graph: Session, *, clips: int = 1, candidates: int = 32) -> None:
        self._graph = graph
        self._on_host = graph.computes_on_host
        self._unit = candidates
        self._most = min(clips * candidates, graph.largest_batch or clips * candidates)
        self._lock = threading.Lock()
        self._waiting: list[_Request] = []
        self._running = False
        self._memory: npt.NDArray[Any] | None = None  # frames of one run, reused

    def of(self, candidates: Candidates) -> Features:
        """float32 [N, C], a row per candidate."""
        request = _Request(candidates.pixels)
        with self._lock:
            self._waiting.append(request)
            first, self._running = not self._running, True
        if not first:
            request.turn.wait()
        if not request.done:  # no other thread runs the graph, and this request is the first of those that wait
            self._run(self._take())
            with self._lock:
                self._running = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].turn.set()
        if request.error is not None:
            raise request.error
        assert request.features is not None
        return request.features

    def _take(self) -> list[_Request]:
        """The requests of the next run: the first ones, as many as fit; on the host one."""
        with self._lock:
            taken = [self._waiting.pop(0)]
            frames = len(taken[0].pixels)
            while not self._on_host and self._waiting and frames + len(self._waiting[0].pixels) <= self._most:
                frames += len(self._waiting[0].pixels)
                taken.append(self._waiting.pop(0))
        return taken

    def _run(self, requests: Sequence[_Request]) -> None:
        """Run the graph on the requests' frames; an error is that of each."""
        try:
            features, start = self._features([request.pixels for request in requests]), 0
        except BaseException as error:
            for request in requests:
                request.error = error
        else:
            for request in requests:
                request.features = features[start : start + len(request.pixels)]
                start += len(request.pixels)
        for request in requests:
            request.turn.set()

    def _features(self, pixels: Sequence[npt.NDArray[Any]]) -> Features:
        frames = sum(map(len, pixels))
        given = pixels[0] if self._on_host else self._together(pixels, frames)
        features = self._graph.run({"frames": given}, ["features"])["features"]
        return check_shape(features, (len(given), None), output="features")[:frames]

    def _together(self, pixels: Sequence[npt.NDArray[Any]], frames: int) -> npt.NDArray[Any]:
        """The frames one after the other; what is left of the last unit are frames of earlier runs."""
        size = max(frames, min(self._unit * rounded_up(-(-frames // self._unit)), self._most))
        if self._memory is None or len(self._memory) < size:
            self._memory = np.zeros((max(size, self._most), *pixels[0].shape[1:]), pixels[0].dtype)
        start = 0
        for each in pixels:
            self._memory[start : start + len(each)] = each
            start += len(each)
        return self._memory[:size]
