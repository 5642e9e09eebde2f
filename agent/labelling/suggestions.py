"""The model's own label for videos that no one has labelled yet, computed in the background.

Features that the silo's store holds come first: they cost nothing. Other videos go through the bundle's networks, one
at a time, in a child process of low priority; the video that a person looks at is the next. Nothing is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from ...base.errors import FlamestError
from ...base.process import Shutdown
from ..worker import Worker, WorkStopped
from .book import LabelBook
from .events import Events
from .records import SuggestionRecord
from .suggestion_work import SuggestionRequest, open_networks, suggest_for_video, suggest_from_store

NO_FEATURES = frozenset({"store_missing", "store_empty"})  # nothing was extracted yet
IDLE_S = 2.0  # between two looks for videos without a label


class Suggestions:
    """A thread that computes suggestions while it is on. ``notice`` is called with a sentence when there are none."""

    def __init__(self, request: SuggestionRequest, notice: Callable[[str], None] = lambda _: None) -> None:
        self._request = request
        self._notice = notice
        self._wake = threading.Condition()
        self._on = True
        self._ended = False
        self._preferred: list[str] = []  # identifiers, the newest last
        self._done: set[tuple[str, int, int]] = set()
        self._stop = Shutdown()  # of the work in progress
        self._thread: threading.Thread | None = None

    @property
    def on(self) -> bool:
        return self._on and not self._ended

    def start(self, book: LabelBook, events: Events) -> None:
        """Begin, for the videos of ``book``."""
        self._thread = threading.Thread(target=self._run, args=(book, events), name="suggestions", daemon=True)
        self._thread.start()

    def prefer(self, identifier: str) -> None:
        """Take this video next."""
        with self._wake:
            self._preferred = [*(other for other in self._preferred if other != identifier), identifier][-100:]
            self._wake.notify()

    def switch(self, *, on: bool) -> None:
        """Stop, with the work in progress, or go on."""
        with self._wake:
            self._on = on
            if not on:
                self._stop.request()
            self._wake.notify()

    def close(self) -> None:
        """End the thread and its child process."""
        with self._wake:
            self._ended = True
            self._stop.request()
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(10.0)

    def _run(self, book: LabelBook, events: Events) -> None:
        store_read = False
        while self._wait_until_on():
            try:
                with Worker(self._stop) as worker:
                    if not store_read:
                        self._from_store(worker, book, events)
                        store_read = True
                    self._from_videos(worker, book, events)
            except WorkStopped:
                continue
            except FlamestError as error:  # a wrong bundle or model: the page goes on without suggestions
                self._notice(f"no suggestions: {error.with_fix}")
                self._on = False

    def _wait_until_on(self) -> bool:
        """Wait until suggestions are wanted. Returns False at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._ended or self._on)
            self._stop = Shutdown()
            return not self._ended

    def _from_store(self, worker: Worker, book: LabelBook, events: Events) -> None:
        if self._request.store is None:
            return
        try:
            found = worker.call(suggest_from_store, self._request)
        except WorkStopped:
            raise
        except FlamestError as error:
            if error.code not in NO_FEATURES:
                self._notice(f"no suggestions from the store: {error.with_fix}")
            return
        for path, label, probability in found:
            video = book.videos_of.id_of(path)
            book.suggestions[video] = SuggestionRecord(label, probability)
        if found:
            events.publish_from_thread("changed", {"revision": book.revision})

    def _from_videos(self, worker: Worker, book: LabelBook, events: Events) -> None:
        opened = False
        while not self._stop.requested:
            for identifier, path, size, modified in self._next(book):
                if not opened:
                    worker.call(open_networks, self._request, book.videos_of.root)
                    opened = True
                self._done.add((identifier, size, modified))
                try:
                    label, probability = worker.call(suggest_for_video, self._request, book.videos_of.root, path)
                except WorkStopped:
                    self._done.discard((identifier, size, modified))
                    raise
                except FlamestError:
                    continue  # this video cannot be decoded
                book.suggestions[identifier] = SuggestionRecord(label, probability)
                events.publish_from_thread("suggestion", {"id": identifier, "label": label, "probability": probability})
            with self._wake:
                self._wake.wait_for(lambda: self._stop.requested or bool(self._preferred), IDLE_S)
                worker.rest()

    def _next(self, book: LabelBook) -> Iterator[tuple[str, str, int, int]]:
        """Yield the videos to compute, always the one that was shown last first."""
        while True:
            waiting = {
                video.id: video
                for video in book.unlabelled()
                if video.id not in book.suggestions and (video.id, video.size, video.modified_ns) not in self._done
            }
            if not waiting or self._stop.requested:
                self._preferred.clear()
                return
            chosen = next((video for video in reversed(self._preferred) if video in waiting), next(iter(waiting)))
            video = waiting[chosen]
            yield video.id, video.path, video.size, video.modified_ns
