"""The vision-language part of an extractor: prepared frames in, one vector and one caption each out.

A ``ContinuousBatchCaptioner`` or a ``StaticBatchCaptioner`` writes captions and encodes each with its frame
(paper eqs. 5 and 6): the
first gives the place of an ended caption to the next frame and needs a text graph on the host, the second
writes a batch to its end, on any backend. A ``Retriever`` finds the nearest of the captions that were
written beforehand (docs/paper.md, reading 10). Frames go in with ``add``, each ``advance`` does a part of the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, MissingExtra
from .backends.session import Session
from .bundle.manifest import TOKENIZER_FILE, RetrievedCaption, VisionLanguage
from .bundle.opening import Bundle
from .caption_batch import CaptionRows
from .records import Caption, timed
from .vision_language import CrossAttentionCache, TokenIds, VisionLanguageModel

if TYPE_CHECKING:
    import tokenizers

Vector = npt.NDArray[np.float32]
GPU_BATCH = 16  # the most that the plans' profiles take (export/graphs/spec.py); on a CPU one clip fills the cores


@dataclass(frozen=True, eq=False)
class FrameEmbedding:
    """What was found out about one frame."""

    key: Hashable
    vector: Vector  # [width]
    caption: Caption
    stages_ms: dict[str, float]  # vision, caption, embed: its share


class Captioner(Protocol):
    @property
    def room(self) -> int:
        """How many frames more are welcome now."""

    @property
    def busy(self) -> bool:
        """Whether ``advance`` has anything to do."""

    def add(self, key: Hashable, pixels: Vector) -> None:
        """A frame, float32 [3, S, S]; ``key`` comes back with what is found."""

    def advance(self) -> list[FrameEmbedding]:
        """A part of the work; the frames that are done with it."""

    def drop(self) -> None:
        """Forget all frames."""


class _Waiting:
    """Frames that no network has seen yet, in the order in which they came."""

    def __init__(self) -> None:
        self._frames: deque[tuple[Hashable, Vector]] = deque()
        self.clear = self._frames.clear

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, key: Hashable, pixels: Vector) -> None:
        self._frames.append((key, pixels))

    def take(self, most: int) -> tuple[list[Hashable], Vector]:
        """At most ``most`` frames: their keys, and float32 [n, 3, S, S]."""
        taken = [self._frames.popleft() for _ in range(min(most, len(self._frames)))]
        return [key for key, _ in taken], np.stack([pixels for _, pixels in taken])


class CaptionTokenizer:
    """From token ids to text and back, by the bundle's tokenizer."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def caption(self, ids: TokenIds) -> Caption:
        return Caption(self._tokenizer.decode(list(ids), skip_special_tokens=True), ids)

    def again(self, caption: Caption) -> TokenIds:
        """docs/paper.md, reading 1: the caption's text is tokenised again, to be read with the frame."""
        return tuple(self._tokenizer.encode(caption.text, add_special_tokens=False).ids)


class ContinuousBatchCaptioner:
    """Writes captions row by row (caption_batch.py). ``batch``: frames that the vision graph sees at once."""

    def __init__(self, model: VisionLanguageModel, words: CaptionTokenizer, *, rows: int, batch: int) -> None:
        self._model = model
        self._words = words
        self._batch = batch
        self._waiting = _Waiting()
        self._rows = CaptionRows(model, rows)
        self._spent: dict[Hashable, dict[str, float]] = {}  # milliseconds by stage

    @property
    def room(self) -> int:
        return self._rows.free - len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(len(self._waiting) or self._rows.writing)

    def add(self, key: Hashable, pixels: Vector) -> None:
        self._waiting.put(key, pixels)

    def advance(self) -> list[FrameEmbedding]:
        while len(self._waiting) and self._rows.free:
            self._look()
        taken = {"caption": 0.0}
        with timed(taken, "caption"):
            ended = self._rows.step()
        for spent in self._spent.values():
            spent["caption"] += taken["caption"] / len(self._spent)
        return [self._read(key, ids, memory) for key, ids, memory in ended]

    def drop(self) -> None:
        self._waiting.clear()
        self._rows.drop()
        self._spent.clear()

    def _look(self) -> None:
        keys, pixels = self._waiting.take(min(self._batch, self._rows.free))
        taken = {"vision": 0.0}
        with timed(taken, "vision"):
            self._rows.add(keys, pixels)
        self._spent |= {key: {"vision": taken["vision"] / len(keys), "caption": 0.0, "embed": 0.0} for key in keys}

    def _read(self, key: Hashable, ids: TokenIds, memory: CrossAttentionCache) -> FrameEmbedding:
        spent = self._spent.pop(key)
        caption = self._words.caption(ids)
        with timed(spent, "embed"):
            (vector,) = self._model.embed(memory, [self._words.again(caption)])
        return FrameEmbedding(key, vector, caption, spent)


@dataclass(eq=False)
class _Batches:
    """What the describers that work in whole batches have in common: who waits."""

    batch: int
    waiting: _Waiting = field(default_factory=_Waiting)

    @property
    def room(self) -> int:
        return self.batch - len(self.waiting)

    @property
    def busy(self) -> bool:
        return bool(len(self.waiting))

    def add(self, key: Hashable, pixels: Vector) -> None:
        self.waiting.put(key, pixels)

    def drop(self) -> None:
        self.waiting.clear()


class StaticBatchCaptioner(_Batches):
    """Writes the captions of a batch until the last has ended."""

    def __init__(self, model: VisionLanguageModel, words: CaptionTokenizer, *, batch: int) -> None:
        super().__init__(batch)
        self._model = model
        self._words = words

    def advance(self) -> list[FrameEmbedding]:
        if not self.busy:
            return []
        keys, pixels = self.waiting.take(self.batch)
        spent = dict.fromkeys(("vision", "caption", "embed"), 0.0)
        with timed(spent, "vision"):
            memory = self._model.look(pixels)
        with timed(spent, "caption"):
            captions = [self._words.caption(ids) for ids in self._model.caption_ids(memory)]
        with timed(spent, "embed"):
            vectors = self._model.embed(memory, [self._words.again(caption) for caption in captions])
        share = {stage: milliseconds / len(keys) for stage, milliseconds in spent.items()}
        return [FrameEmbedding(*found, dict(share)) for found in zip(keys, vectors, captions, strict=True)]


class Retriever(_Batches):
    """Finds the nearest caption of a fixed set. ``graph`` is the bundle's ``clip``, ``spec`` its manifest's vlm."""

    def __init__(self, graph: Session, spec: RetrievedCaption, *, batch: int) -> None:
        super().__init__(batch)
        self._graph = graph
        self._captions = spec.captions

    def advance(self) -> list[FrameEmbedding]:
        """Raises DataError when the graph names a caption that is not in the manifest."""
        if not self.busy:
            return []
        keys, pixels = self.waiting.take(self.batch)
        spent = {"vision": 0.0}
        with timed(spent, "vision"):
            found = self._graph.run({"pixels": pixels}, ["vector", "caption_index"])
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
    """The describer of a checked bundle; None when its extractor has no vision-language part.

    ``open_graph`` opens a graph of the bundle by its name. ``rows``: captions in the making at once,
    ``batch``: frames that one run of a graph sees, None for what suits the place where it runs.
    """
    spec = bundle.manifest.vlm
    if spec is None:
        return None
    if isinstance(spec, RetrievedCaption):
        graph = open_graph("clip")
        return Retriever(graph, spec, batch=batch or _usual_batch(graph))
    return _open_writer(bundle, spec, open_graph, rows=rows, batch=batch)


def _open_writer(
    bundle: Bundle, spec: VisionLanguage, open_graph: Callable[[str], Session], *, rows: int, batch: int | None
) -> Captioner:
    words = CaptionTokenizer(_open_tokenizer(bundle))
    alone = open_graph("words") if spec.attention_mode == "text" else None
    model = VisionLanguageModel(open_graph("vision"), open_graph("text"), spec, words=alone)
    if model.computes_on_host:
        return ContinuousBatchCaptioner(model, words, rows=rows, batch=batch or 1)
    return StaticBatchCaptioner(model, words, batch=batch or GPU_BATCH)


def _usual_batch(graph: Session) -> int:
    return 1 if graph.computes_on_host else GPU_BATCH


def _open_tokenizer(bundle: Bundle) -> tokenizers.Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", extra="agent") from error
    data = bundle.read(TOKENIZER_FILE)
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"{bundle.tokenizer} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
