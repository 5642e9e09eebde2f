"""A clip on its way through an extractor, and its outcome."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from .captioner import FrameEmbedding
from .clip_records import Caption, Clip
from .video.clip_reader import PreparedClip

NOTHING = np.empty(0, dtype=np.float32)
_NO_CAPTION = Caption("", ())


@dataclass(eq=False)
class ClipJob:
    """Its parts may be finished by several threads."""

    clip: Clip
    error: DataError | None = None  # why it cannot be used
    keyframe: int = -1
    times_s: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    stages_ms: dict[str, float] = field(default_factory=dict)
    cnn: npt.NDArray[np.float32] = field(default_factory=lambda: NOTHING)
    embedded: list[FrameEmbedding | None] = field(default_factory=list)  # by captioned frame
    done: bool = False
    _open_parts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def refuse(self, error: DataError) -> None:
        self.error, self.done = error, True

    def begin(self, prepared: PreparedClip, *, cnn: bool) -> None:
        """Take over all but the frames, which the networks get."""
        self.keyframe, self.times_s, self.warnings = prepared.keyframe, prepared.times_s, prepared.warnings
        self.stages_ms = dict(prepared.stages_ms)
        self.embedded = [None] * prepared.frames
        self._open_parts = prepared.frames + cnn

    def set_cnn(self, vector: npt.NDArray[np.float32], milliseconds: float) -> bool:
        """Take the vector of graph ``cnn``; True when this was the last part."""
        self.cnn, self.stages_ms["cnn"] = vector, milliseconds
        return self._finish_part()

    def set_frame(self, index: int, embedding: FrameEmbedding) -> bool:
        """Take the embedding of captioned frame ``index``; True when this was the last part."""
        self.embedded[index] = embedding
        return self._finish_part()

    def _finish_part(self) -> bool:
        with self._lock:
            self._open_parts -= 1
            self.done = not self._open_parts
            return self.done

    @property
    def caption(self) -> Caption:
        first = self.embedded[0] if self.embedded else None
        return first.caption if first else _NO_CAPTION

    def vector(self) -> npt.NDArray[np.float32]:
        """Mean of the frames' vectors; a single one is unchanged, bit for bit."""
        found = [each.vector for each in self.embedded if each is not None]
        return np.asarray(np.mean(found, axis=0, dtype=np.float32)) if found else NOTHING

    def milliseconds(self, stage: str) -> float:
        return self.stages_ms.get(stage, 0.0) + sum(each.stages_ms.get(stage, 0.0) for each in self.embedded if each)
