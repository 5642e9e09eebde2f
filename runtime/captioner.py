"""The vision-language part of an extractor: a caption and a vector for each prepared frame.

``ContinuousBatchCaptioner`` and ``StaticBatchCaptioner`` generate captions and encode each with its frame (paper eqs.
5 and 6). The first gives the row of a finished caption to the next frame and needs a text graph on the host; the
second finishes a whole batch, on any backend. ``CaptionRetriever`` finds the nearest of captions that were written
beforehand (docs/paper.md, reading 10). ``add`` takes frames, each ``advance`` does a part of the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..base.files import printable_path
from .backends.session import Session, check_shape
from .bundle.manifest import TOKENIZER_FILE, RetrievedCaption, VisionLanguage
from .bundle.opening import Bundle
from .bundle.tokenizer_check import open_tokenizer
from .caption_batch import CaptionBatch
from .clip_records import Caption, timed
from .vision_language import CrossAttentionCache, TokenIds, VisionLanguageModel

if TYPE_CHECKING:
    import tokenizers

Vector = npt.NDArray[np.float32]
GPU_BATCH = 16  # the largest batch of the engines' profiles (export/graphs/spec.py); on a CPU one clip uses all cores


@dataclass(frozen=True, eq=False)
class FrameEmbedding:
    """Vector and caption of one frame."""

    key: Hashable
    vector: Vector  # [width]
    caption: Caption
    stages_ms: dict[str, float]  # vision, caption, embed: this frame's share


class Captioner(Protocol):
    @property
    def capacity(self) -> int:
        """Number of frames that can be added now."""

    @property
    def unfinished(self) -> int:
        """Number of added frames that ``advance`` has not returned."""

    def add(self, key: Hashable, pixels: Vector) -> None:
        """Add a frame, float32 [3, S, S]; its FrameEmbedding carries ``key``."""

    def advance(self) -> list[FrameEmbedding]:
        """Do a part of the work; return the frames that it finished."""

    def cancel(self) -> None:
        """Drop all frames that are unfinished."""


class _FrameQueue:
    """Queue of frames that no network has processed yet."""

    def __init__(self) -> None:
        self._frames: deque[tuple[Hashable, Vector]] = deque()
        self.clear = self._frames.clear

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, key: Hashable, pixels: Vector) -> None:
        self._frames.append((key, pixels))

    def take(self, most: int) -> tuple[list[Hashable], Vector]:
        """Take at most ``most`` frames: their keys, and float32 [n, 3, S, S]."""
        taken = [self._frames.popleft() for _ in range(min(most, len(self._frames)))]
        return [key for key, _ in taken], np.stack([pixels for _, pixels in taken])


class CaptionTokenizer:
    """Token ids to text and back, with the bundle's tokenizer."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def caption(self, ids: TokenIds) -> Caption:
        return Caption(self._tokenizer.decode(list(ids), skip_special_tokens=True), ids)

    def retokenize(self, caption: Caption) -> TokenIds:
        """Token ids of the caption's text, to be encoded with the frame (docs/paper.md, reading 1)."""
        return tuple(self._tokenizer.encode(caption.text, add_special_tokens=False).ids)


class ContinuousBatchCaptioner:
    """Generates captions row by row (caption_batch.py). ``batch``: frames in one run of the vision graph."""

    def __init__(self, model: VisionLanguageModel, tokenizer: CaptionTokenizer, *, rows: int, batch: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch = batch
        self._waiting = _FrameQueue()
        self._caption_batch = CaptionBatch(model, rows)
        self._spent: dict[Hashable, dict[str, float]] = {}  # milliseconds by stage

    @property
    def capacity(self) -> int:
        return self._caption_batch.free - len(self._waiting)

    @property
    def unfinished(self) -> int:
        return len(self._waiting) + self._caption_batch.unfinished

    def add(self, key: Hashable, pixels: Vector) -> None:
        self._waiting.put(key, pixels)

    def advance(self) -> list[FrameEmbedding]:
        while len(self._waiting) and self._caption_batch.free:
            self._encode_waiting()
        taken = {"caption": 0.0}
        with timed(taken, "caption"):
            ended = self._caption_batch.step()
        for spent in self._spent.values():
            spent["caption"] += taken["caption"] / len(self._spent)
        return [self._embed(key, ids, image) for key, ids, image in ended]

    def cancel(self) -> None:
        self._waiting.clear()
        self._caption_batch.cancel()
        self._spent.clear()

    def _encode_waiting(self) -> None:
        keys, pixels = self._waiting.take(min(self._batch, self._caption_batch.free))
        taken = {"vision": 0.0}
        with timed(taken, "vision"):
            self._caption_batch.add(keys, pixels)
        self._spent |= {key: {"vision": taken["vision"] / len(keys), "caption": 0.0, "embed": 0.0} for key in keys}

    def _embed(self, key: Hashable, ids: TokenIds, image: CrossAttentionCache) -> FrameEmbedding:
        spent = self._spent.pop(key)
        caption = self._tokenizer.caption(ids)
        with timed(spent, "embed"):
            (vector,) = self._model.embed(image, [self._tokenizer.retokenize(caption)])
        return FrameEmbedding(key, vector, caption, spent)


@dataclass(eq=False)
class _Batches:
    """The queue of the captioners that work in whole batches."""

    batch: int
    waiting: _FrameQueue = field(default_factory=_FrameQueue)

    @property
    def capacity(self) -> int:
        return self.batch - len(self.waiting)

    @property
    def unfinished(self) -> int:
        return len(self.waiting)

    def add(self, key: Hashable, pixels: Vector) -> None:
        self.waiting.put(key, pixels)

    def cancel(self) -> None:
        self.waiting.clear()


class StaticBatchCaptioner(_Batches):
    """Generates the captions of a batch until the last one has ended."""

    def __init__(self, model: VisionLanguageModel, tokenizer: CaptionTokenizer, *, batch: int) -> None:
        super().__init__(batch)
        self._model = model
        self._tokenizer = tokenizer

    def advance(self) -> list[FrameEmbedding]:
        if not self.unfinished:
            return []
        keys, pixels = self.waiting.take(self.batch)
        spent = dict.fromkeys(("vision", "caption", "embed"), 0.0)
        with timed(spent, "vision"):
            image = self._model.encode_image(pixels)
        with timed(spent, "caption"):
            captions = [self._tokenizer.caption(ids) for ids in self._model.caption_ids(image)]
        with timed(spent, "embed"):
            vectors = self._model.embed(image, [self._tokenizer.retokenize(caption) for caption in captions])
        share = {stage: milliseconds / len(keys) for stage, milliseconds in spent.items()}
        return [FrameEmbedding(*found, dict(share)) for found in zip(keys, vectors, captions, strict=True)]


class CaptionRetriever(_Batches):
    """Finds the nearest caption of a fixed set. ``graph``: the bundle's ``clip``; ``spec``: ``manifest.vlm``."""

    def __init__(self, graph: Session, spec: RetrievedCaption, *, batch: int) -> None:
        super().__init__(batch)
        self._graph = graph
        self._captions = spec.captions

    def advance(self) -> list[FrameEmbedding]:
        """See Captioner. Raises DataError (``bad_graph``) for a caption index that is not in the manifest."""
        if not self.unfinished:
            return []
        keys, pixels = self.waiting.take(self.batch)
        spent = {"vision": 0.0}
        with timed(spent, "vision"):
            found = self._graph.run({"pixels": pixels}, ["vector", "caption_index"])
        check_shape(found["vector"], (len(keys), None), output="vector")
        check_shape(found["caption_index"], (len(keys),), output="caption_index")
        captions = [Caption(self._caption(int(index)), ()) for index in found["caption_index"]]
        share = {"vision": spent["vision"] / len(keys)}
        return [FrameEmbedding(*each, dict(share)) for each in zip(keys, found["vector"], captions, strict=True)]

    def _caption(self, index: int) -> str:
        if not 0 <= index < len(self._captions):
            raise DataError(
                f"graph 'clip' names caption {index} of {len(self._captions)}",
                fix="export the bundle again with this version of flamest-export",
                code="bad_graph",
            )
        return self._captions[index]


def open_captioner(
    bundle: Bundle, open_graph: Callable[[str], Session], *, rows: int, batch: int | None
) -> Captioner | None:
    """Open the captioner of a checked bundle; None when its extractor has no vision-language part.

    ``open_graph`` opens a graph of the bundle by its name. ``rows``: captions generated at once, ``batch``: frames in
    one run of a graph, None for the default of the device.
    """
    spec = bundle.manifest.vlm
    if spec is None:
        return None
    if isinstance(spec, RetrievedCaption):
        graph = open_graph("clip")
        return CaptionRetriever(graph, spec, batch=batch or _default_batch(graph))
    return _open_generator(bundle, spec, open_graph, rows=rows, batch=batch)


def _open_generator(
    bundle: Bundle, spec: VisionLanguage, open_graph: Callable[[str], Session], *, rows: int, batch: int | None
) -> Captioner:
    tokenizer = CaptionTokenizer(open_tokenizer(bundle.read(TOKENIZER_FILE), printable_path(bundle.tokenizer)))
    words = open_graph("words") if spec.attention_mode == "text" else None
    model = VisionLanguageModel(open_graph("vision"), open_graph("text"), spec, words=words)
    if model.computes_on_host:
        return ContinuousBatchCaptioner(model, tokenizer, rows=rows, batch=batch or 1)
    return StaticBatchCaptioner(model, tokenizer, batch=batch or GPU_BATCH)


def _default_batch(graph: Session) -> int:
    return 1 if graph.computes_on_host else GPU_BATCH
