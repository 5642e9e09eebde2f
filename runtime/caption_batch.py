"""Continuous batching of captions: the row of a finished caption goes to the next frame.

Yu et al., Orca, OSDI 2022 (https://www.usenix.org/conference/osdi22/presentation/yu). A frame is a row of the text
graph's batch. Its tokens' keys and values are at fixed positions of a window whose length does not depend on the
other rows, so a caption does not depend on the rows next to it, to the bit where the backend's kernels treat rows
alike.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..base.errors import InvariantError
from .bundle.manifest import MASKED_SCORE
from .vision_language import CrossAttentionCache, TokenIds, VisionLanguageModel

Floats = npt.NDArray[np.float32]


@dataclass(eq=False)
class _Row:
    """The unfinished caption of one frame."""

    key: Hashable
    ids: list[int] = field(default_factory=list)
    ended: bool = False


class CaptionBatch:
    """At most ``rows`` unfinished captions. The text graph must compute on the host (``model.computes_on_host``).

    Rows 0 to n - 1 are in use; a finished one stays until its caption is encoded with its frame, and ``add`` or
    ``step`` reuses the row.
    """

    def __init__(self, model: VisionLanguageModel, rows: int) -> None:
        text = model.spec.text
        self._model = model
        self._size = rows
        self._rows: list[_Row] = []
        self._window = model.spec.caption.max_new_tokens - 1  # positions for the tokens before the newest
        self._past_shape = (rows, text.heads, self._window, text.head_dim)
        self.past: dict[str, Floats] = {}  # allocated, as is cross, with the first frame: it defines shapes and type
        self._cross: dict[str, Floats] = {}

    @property
    def free(self) -> int:
        """Number of frames that ``add`` accepts now."""
        return self._size - self.unfinished

    @property
    def unfinished(self) -> int:
        """Number of captions that have not ended."""
        return sum(not row.ended for row in self._rows)

    def add(self, keys: list[Hashable], pixels: Floats) -> None:
        """Start the captions of frames, float32 [n, 3, S, S], n at most ``free``."""
        if len(keys) > self.free:
            raise InvariantError(f"{len(keys)} frames for {self.free} free rows")
        encoded = {name: value.numpy() for name, value in self._model.encode_image(pixels).values.items()}
        if not self._cross:
            self._cross = {
                name: np.empty((self._size, *array.shape[1:]), array.dtype) for name, array in encoded.items()
            }
            dtype = next(iter(encoded.values())).dtype
            self.past = {name: np.zeros(self._past_shape, dtype) for name in self._model.past_names}
        for index, key in enumerate(keys):
            place = next((place for place, row in enumerate(self._rows) if row.ended), len(self._rows))
            for name, array in encoded.items():
                self._cross[name][place] = array[index]
            for array in self.past.values():
                array[place] = 0.0  # a masked NaN of the previous frame would still be a NaN
            self._rows[place : place + 1] = [_Row(key)]

    def step(self) -> list[tuple[Hashable, TokenIds, CrossAttentionCache]]:
        """Generate one token in every caption. Return the finished ones: key, token ids, and the frame's keys and
        values, which are valid until the next ``add`` or ``step``."""
        self._close_gaps()
        count = len(self._rows)
        if not count:
            return []
        rule = self._model.spec.caption
        lengths = np.array([len(row.ids) for row in self._rows])
        tokens = np.array([row.ids[-1] if row.ids else rule.start_id for row in self._rows])
        past = self._model.borrow({name: array[:count] for name, array in self.past.items()})
        chosen, present = self._model.step(self._image(0, count), past, tokens, lengths, self._mask(lengths))

        keep = np.flatnonzero(lengths < self._window) if self._window else ()
        for name, new in zip(self._model.past_names, self._model.present_names, strict=True) if len(keep) else ():
            self.past[name][keep, :, lengths[keep]] = present[new].numpy()[keep, :, -1]
        for row, token in zip(self._rows, chosen.tolist(), strict=True):
            row.ended = token == rule.end_id
            if not row.ended:
                row.ids.append(token)
                row.ended = len(row.ids) == rule.max_new_tokens
        return [
            (row.key, tuple(row.ids), self._image(place, place + 1))
            for place, row in enumerate(self._rows)
            if row.ended
        ]

    def cancel(self) -> None:
        """Drop all captions."""
        self._rows.clear()

    def _close_gaps(self) -> None:
        """Move rows from the end to those of finished captions that no new frame has taken."""
        while ended := [place for place, row in enumerate(self._rows) if row.ended]:
            last = len(self._rows) - 1
            if not self._rows[last].ended:
                for arrays in (self._cross, self.past):
                    for array in arrays.values():
                        array[ended[0]] = array[last]
                self._rows[ended[0]] = self._rows[last]
            self._rows.pop()

    def _image(self, first: int, end: int) -> CrossAttentionCache:
        rows = {name: array[first:end] for name, array in self._cross.items()}
        return CrossAttentionCache(self._model.borrow(rows), end - first)

    def _mask(self, lengths: npt.NDArray[np.int64]) -> Floats:
        """float32 [n, 1, 1, window + 1]: each row's own tokens so far, and the newest at the end."""
        keep = np.arange(self._window + 1) < lengths[:, None]
        keep[:, -1] = True
        return np.where(keep, np.float32(0.0), np.float32(MASKED_SCORE))[:, None, None]
