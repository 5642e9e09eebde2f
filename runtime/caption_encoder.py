"""Encoding of finished captions with their frames (paper eq. 6): one by one on the host, in batches on a device.

On the host a run takes one row, of exactly its length: a vector does not depend on other clips, to the bit. On a device
the frames' keys and values are copied aside, so that their places are free at once, and the runs have few shapes:
1, 2, 4, 8, … rows of one of LENGTHS.
"""

from __future__ import annotations

from collections.abc import Hashable
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

    def encode(self, finished: FinishedCaption, token_ids: TokenIds) -> list[EncodedCaption]:
        """Take a caption, with the ids to encode; return what has been encoded now."""
        image = self._batch.frame(finished.place) if self._model.computes_on_host else None
        if image is not None:
            (vector,) = self._model.embed(image, [token_ids])
            return [EncodedCaption(finished.key, vector)]
        self._batch.copy_frame(finished.place, self._cross, len(self._waiting), rows=self._most)
        self._waiting.append((finished.key, token_ids))
        return self.run() if len(self._waiting) == self._most else []

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
