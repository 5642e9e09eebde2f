"""Encoding of finished captions with their frames (paper eq. 6): one by one on the host, in batches on a device.

On the host a run takes one row, of exactly its length: a vector does not depend on other clips, to the bit. On a device
the frames' keys and values are copied aside, so that their places are free at once, and the runs have few shapes:
1, 2, 4, 8, … rows of one of LENGTHS.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .backends.session import Rows
from .caption_batch import CaptionBatch, FinishedCaption
from .pipeline_options import rounded_up
from .vision_language import CrossAttentionCache, TokenIds, VisionLanguageModel

LENGTHS = (12, 22, 64)  # tokens: a usual caption, the longest one generated, the most that a text graph takes


class EncodedCaption(NamedTuple):
    key: Hashable
    vector: npt.NDArray[np.float32]  # [width]


class CaptionEncoder:
    """Encodes captions of a CaptionBatch. ``rows``: the most that it collects for one run on a device."""

    def __init__(self, model: VisionLanguageModel, batch: CaptionBatch, *, rows: int) -> None:
        self._model, self._batch, self._most = model, batch, rows
        self._waiting: list[tuple[Hashable, TokenIds]] = []  # row r of the memory is the frame of entry r
        self._cross: dict[str, Rows] = {}

    def __len__(self) -> int:
        """Number of captions that wait for a run."""
        return len(self._waiting)

    def encode(self, finished: Sequence[tuple[FinishedCaption, TokenIds]]) -> list[EncodedCaption]:
        """Take captions, each with the ids to encode; return what has been encoded now."""
        if self._model.computes_on_host:
            return [self._on_host(caption, token_ids) for caption, token_ids in finished]
        encoded, left = list[EncodedCaption](), list(finished)
        while left:
            taken = left[: self._most - len(self._waiting)]
            del left[: len(taken)]
            places = [caption.place for caption, _ in taken]
            self._batch.copy_frames(places, self._cross, len(self._waiting), rows=self._most)
            self._waiting += [(caption.key, token_ids) for caption, token_ids in taken]
            if len(self._waiting) == self._most:
                encoded += self.run()
        return encoded

    def run(self) -> list[EncodedCaption]:
        """Encode the captions that wait."""
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, []
        count = min(rounded_up(len(waiting)), self._most)
        image = CrossAttentionCache({name: rows.first(count) for name, rows in self._cross.items()}, count)
        token_ids = [ids for _, ids in waiting] + [()] * (count - len(waiting))
        longest = max(map(len, token_ids)) + 2  # with [CLS] and [SEP]
        vectors = self._model.embed(image, token_ids, length=min((n for n in LENGTHS if n >= longest), default=0))
        return [EncodedCaption(key, vector) for (key, _), vector in zip(waiting, vectors, strict=False)]

    def cancel(self) -> None:
        """Drop the captions that wait."""
        self._waiting.clear()

    def _on_host(self, caption: FinishedCaption, token_ids: TokenIds) -> EncodedCaption:
        (vector,) = self._model.embed(self._batch.frame(caption.place), [token_ids])
        return EncodedCaption(caption.key, vector)
