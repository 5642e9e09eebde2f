"""Everything that the page shows and does, over one folder; shared by all tabs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...base.errors import FlamestError
from ...base.files import FileLock, printable_path
from ...base.log import Log
from ..extraction.aliases import near_misses
from .access import Access
from .book import LabelBook
from .events import Events
from .facts import VideoFacts
from .folder_videos import FolderVideo
from .proxies import Proxies
from .records import StateRecord
from .suggestions import Suggestions
from .vocabulary import vocabulary

log = Log("label")

WATCH_EVERY_S = 0.5
RESCAN_EVERY_S = 5.0  # or rarer, in a folder whose search takes long
RESCAN_SHARE = 0.05  # of the time that may go into searching the folder


@dataclass(frozen=True)
class Known:
    """Facts of this silo that the page shows, from agent.toml and the model; empty where there is none."""

    run_classes: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    store: Path | None = None  # the feature store of this folder's clips


class PageState:
    """The state of the page's server. Its coroutines run in the server's event loop."""

    def __init__(
        self,
        book: LabelBook,
        access: Access,
        known: Known,
        *,
        suggestions: Suggestions | None = None,
        on_enter: Callable[[], None] = lambda: None,
    ) -> None:
        self.book = book
        self.access = access
        self.known = known
        self.events = Events()
        self.facts = VideoFacts(book)
        self.proxies = Proxies(book)
        self._suggestions = suggestions
        self._on_enter = on_enter

    def enter(self, token: str) -> str:
        """Exchange a one-time address for a cookie's value, and have a new address shown. Raises Refused."""
        value = self.access.exchange(token)
        self._on_enter()
        return value

    def record(self, tab: str) -> StateRecord:
        """Return the whole state for a tab. Reads labels.csv again if it was written to."""
        self.book.refresh()
        undo, redo = self.book.undo_counts(tab)
        return StateRecord(
            proof_key=self.access.proof_key,
            revision=self.book.revision,
            folder=printable_path(self.book.folder),
            videos=self.book.videos(),
            vocabulary=vocabulary(self.known.run_classes, self.book.clips_by_label()),
            run=bool(self.known.run_classes),
            aliases=dict(self.known.aliases),
            problems=self.book.problems(),
            undo=undo,
            redo=redo,
            model=self._suggestions is not None,
            suggesting=self.suggesting,
            extracting=self._extracting(),
            writable=self.book.writable,
        )

    def near(self, label: str) -> list[str]:
        """Return the labels of the vocabulary that ``label`` is nearly, like one in another case."""
        known = [each.label for each in vocabulary(self.known.run_classes, self.book.clips_by_label())]
        return [] if label in self.known.aliases else near_misses(label, known)

    def shown(self, video: FolderVideo) -> None:
        """Note that a person looks at this video: it is the next to get a suggestion."""
        if self._suggestions is not None:
            self._suggestions.prefer(video.id)

    @property
    def suggesting(self) -> bool:
        return self._suggestions is not None and self._suggestions.on

    def suggest(self, *, on: bool) -> None:
        """Start or stop the suggestions; nothing happens without a model."""
        if self._suggestions is not None:
            self._suggestions.switch(on=on)

    async def watch(self) -> None:
        """Publish changes that other programs make to labels.csv and to the folder, until cancelled."""
        self.events.start()
        if self._suggestions is not None:
            self._suggestions.start(self.book, self.events)
        next_scan = time.monotonic() + RESCAN_EVERY_S
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if await asyncio.to_thread(self.book.refresh):
                self.events.publish("changed", {"revision": self.book.revision})
            if time.monotonic() >= next_scan:
                began = time.monotonic()
                try:
                    if await asyncio.to_thread(self.book.rescan):
                        self.events.publish("video", {})
                except FlamestError as error:  # the folder is away for now, as a network drive can be
                    log.warning("folder_not_searched", code=error.code)
                took = time.monotonic() - began
                next_scan = time.monotonic() + max(RESCAN_EVERY_S, took / RESCAN_SHARE)

    def close(self) -> None:
        """End the streams, in the event loop's thread."""
        self.events.end()

    def close_threads(self) -> None:
        """End child processes, in any thread; waits for them."""
        self.proxies.close()
        self.facts.close()
        if self._suggestions is not None:
            self._suggestions.close()

    def _extracting(self) -> bool | None:
        store = self.known.store
        return None if store is None else FileLock.is_held(store.with_name(store.name + ".lock"))
