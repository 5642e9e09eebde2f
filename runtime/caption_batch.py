"""Continuous batching of captions: the place of a finished caption goes to the next frame.

Yu et al., Orca, OSDI 2022 (https://www.usenix.org/conference/osdi22/presentation/yu). A frame is a row of the text
graph's batch. Its tokens' keys and values are the last ones of a window whose length does not depend on the other rows,
so a caption does not depend on the rows next to it, to the bit where the backend's kernels treat rows alike.

Keys and values stay where the text graph computes (Rows of backends/session.py). The past has two sets of them: a step
reads one and writes the other. On the host a step computes the unfinished rows alone. On a device it computes 1, 2, 4,
8, … rows, so that few shapes occur and each may be captured once; rows that have no caption run along, masked.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..base.errors import InvariantError
from .backends.host_rows import HostRows
from .backends.row_moves import Move, clear_rows, moves_of, put_rows
from .backends.session import Rows, Value, shape_of
from .pipeline_options import rounded_up
from .vision_language import CrossAttentionCache, TokenIds, VisionLanguageModel


class FinishedCaption(NamedTuple):
    key: Hashable
    ids: TokenIds
    place: int  # of its frame's keys and values, which are valid until the next ``add`` or ``step``


@dataclass(eq=False)
class _Row:
    """The unfinished caption of one frame."""

    key: Hashable
    ids: list[int] = field(default_factory=list)


class CaptionBatch:
    """At most ``places`` unfinished captions."""

    def __init__(self, model: VisionLanguageModel, places: int) -> None:
        text = model.spec.text
        self._model = model
        self._rows: list[_Row | None] = [None] * places
        shape = (places, text.heads, model.window, text.head_dim)
        self.past, self._next_past = ({name: model.rows(name, shape) for name in model.past_names} for _ in range(2))
        self._cross: dict[str, Rows] = {}  # allocated with the first frame, which defines the shapes

    @property
    def places(self) -> int:
        return len(self._rows)

    @property
    def free(self) -> int:
        """Number of frames that ``add`` accepts now."""
        return self._rows.count(None)

    @property
    def unfinished(self) -> int:
        """Number of captions that have not ended."""
        return self.places - self.free

    def add(self, keys: Sequence[Hashable], image: CrossAttentionCache, *, first: int = 0) -> None:
        """Start the captions of the frames in the rows of ``image`` from ``first`` on, at most ``free``."""
        if len(keys) > self.free:
            raise InvariantError(f"{len(keys)} frames for {self.free} free places")
        if not self._cross:
            self._cross = rows_like(self._model, image.values, self.places)
        places = [place for place, row in enumerate(self._rows) if row is None][: len(keys)]
        moves = moves_of((place, index) for index, place in enumerate(places, first))
        put_rows(self._cross, image.values, moves)
        clear_rows(self.past.values(), moves)  # a masked NaN of the previous frame would still be a NaN
        for place, key in zip(places, keys, strict=True):
            self._rows[place] = _Row(key)

    def step(self) -> list[FinishedCaption]:
        """Generate one token in every caption; return the finished ones, whose places are free then."""
        self._close_gaps()
        count = self._size(self._used())
        if not count:
            return []
        rule = self._model.spec.caption
        tokens, lengths = np.full(count, rule.pad_id, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for place, row in enumerate(self._rows[:count]):
            if row is not None:
                tokens[place], lengths[place] = row.ids[-1] if row.ids else rule.start_id, len(row.ids)
        cross, past = ({name: rows.first(count) for name, rows in of.items()} for of in (self._cross, self.past))
        chosen, _ = self._model.step(cross, past, tokens, lengths, into=self._next_past)
        self.past, self._next_past = self._next_past, self.past
        return list(self._take_tokens(chosen.tolist()))

    def frame(self, place: int) -> CrossAttentionCache:
        """The keys and values of one frame without a copy, where the text graph computes on the host."""
        values: dict[str, Value] = {}
        for name, rows in self._cross.items():
            if not isinstance(rows, HostRows):
                raise InvariantError(f"{name} is not in host memory")
            values[name] = rows.only(place)
        return CrossAttentionCache(values, 1)

    def copy_frames(self, places: Sequence[int], into: dict[str, Rows], row: int, *, rows: int) -> None:
        """Copy the keys and values of frames to the rows from ``row`` on of ``into``, which has ``rows`` rows, or
        nothing yet."""
        values = {name: own.first(self.places) for name, own in self._cross.items()}
        if not into:
            into |= rows_like(self._model, values, rows)
        put_rows(into, values, moves_of(enumerate(places, row)))

    def cancel(self) -> None:
        """Drop all captions."""
        self._rows = [None] * self.places

    def _take_tokens(self, chosen: Sequence[int]) -> list[FinishedCaption]:
        """Add each row's token to its caption; the captions that have ended leave their places."""
        rule, finished = self._model.spec.caption, []
        for place, token in enumerate(chosen):
            if (row := self._rows[place]) is None:
                continue
            if token != rule.end_id:
                row.ids.append(token)
            if token == rule.end_id or len(row.ids) == rule.max_new_tokens:
                finished.append(FinishedCaption(row.key, tuple(row.ids), place))
                self._rows[place] = None
        return finished

    def _used(self) -> int:
        """Number of places up to the last one in use."""
        return max((place + 1 for place, row in enumerate(self._rows) if row is not None), default=0)

    def _size(self, count: int) -> int:
        """Rows of a step for ``count`` of them."""
        return count if self._model.computes_on_host else min(rounded_up(count), self.places)

    def _close_gaps(self) -> None:
        """Move captions from the last places to free ones, as far as that makes the step smaller."""
        while self._size(self.unfinished) < self._size(used := self._used()):
            gap = self._rows.index(None)
            every = self._cross | self.past
            put_rows(every, {name: rows.first(self.places) for name, rows in every.items()}, [Move(gap, used - 1, 1)])
            self._rows[gap], self._rows[used - 1] = self._rows[used - 1], None


def rows_like(model: VisionLanguageModel, values: Mapping[str, Value], rows: int) -> dict[str, Rows]:
    """Memory for ``rows`` rows of the text graph's inputs that ``values`` are."""
    return {name: model.rows(name, (rows, *shape_of(value)[1:])) for name, value in values.items()}
