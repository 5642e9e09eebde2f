"""The vision-language part of an extractor: a caption and a vector for each prepared frame.

``CaptionGenerator`` generates captions (caption_batch.py) and encodes each with its frame (caption_encoder.py; paper
eqs. 5 and 6). ``CaptionRetriever`` finds the nearest of captions that were written beforehand (docs/paper.md, reading
10). ``start`` and ``finish`` run the vision graph on a batch of frames, ``add`` takes its result, each ``advance`` does
a part of the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..base.files import printable_path
from .backends.session import Feed, Session, check_shape, wait_for
from .bundle.manifest import TOKENIZER_FILE, RetrievedCaption, VisionLanguage
from .bundle.opening import Bundle
from .bundle.tokenizer_check import open_tokenizer
from .caption_batch import CaptionBatch
from .caption_encoder import CaptionEncoder, EncodedCaption
from .clip_records import Caption, timed
from .vision_language import CrossAttentionCache, TokenIds, VisionLanguageModel

if TYPE_CHECKING:
    import tokenizers

Vector = npt.NDArray[np.float32]
E = TypeVar("E")
ENCODED_AT_ONCE = 16  # captions that a device encodes in one run


@dataclass(frozen=True, eq=False)
class FrameEmbedding:
    """Vector and caption of one frame."""

    key: Hashable
    vector: Vector  # [width]
    caption: Caption
    stages_ms: dict[str, float]  # vision, caption, embed: this frame's share


@dataclass(frozen=True, eq=False)
class StartedFrames(Generic[E]):
    """A run of the vision graph that may not have ended."""

    values: E
    frames: int
    began: float  # on time.perf_counter


@dataclass(frozen=True, eq=False)
class EncodedFrames(Generic[E]):
    """The vision graph's results for a batch of frames."""

    values: E
    milliseconds: float  # per frame


class Captioner(Protocol[E]):
    """One thread at a time; ``start`` and ``finish`` may be called from another one."""

    @property
    def vision(self) -> Session:
        """The session of the vision graph, which takes ``pixels``."""

    @property
    def free(self) -> int:
        """Number of frames that can be added now."""

    @property
    def unfinished(self) -> int:
        """Number of added frames that ``advance`` has not returned."""

    def start(self, pixels: Feed, frames: int) -> StartedFrames[E]:
        """Start a run of the vision graph: uint8 [B, S, S, 3], or float32 [B, 3, S, S] in a bundle of schema 3. The
        first ``frames`` of them count."""

    def finish(self, started: StartedFrames[E]) -> EncodedFrames[E]:
        """Wait for its end."""

    def add(self, keys: Sequence[Hashable], encoded: EncodedFrames[E], *, first: int = 0) -> None:
        """Add frames of ``encoded``, from number ``first`` on, at most ``free``; their FrameEmbeddings carry
        ``keys``."""

    def advance(self) -> list[FrameEmbedding]:
        """Do a part of the work; return the frames that it finished."""

    def cancel(self) -> None:
        """Drop all frames that are unfinished."""


class CaptionTokenizer:
    """Token ids to text and back, with the bundle's tokenizer."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def caption(self, ids: TokenIds) -> Caption:
        return Caption(self._tokenizer.decode(list(ids), skip_special_tokens=True), ids)

    def retokenize(self, caption: Caption) -> TokenIds:
        """Token ids of the caption's text, to be encoded with the frame (docs/paper.md, reading 1)."""
        return tuple(self._tokenizer.encode(caption.text, add_special_tokens=False).ids)


class CaptionGenerator:
    """Generates captions row by row. ``places``: captions at once; ``encoded``: captions in one run of the encoder, on
    a device."""

    def __init__(self, model: VisionLanguageModel, tokenizer: CaptionTokenizer, *, places: int, encoded: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch = CaptionBatch(model, places)
        self._encoder = CaptionEncoder(model, self._batch, rows=encoded)
        self._captions: dict[Hashable, Caption] = {}  # that wait for the encoder
        self._spent: dict[Hashable, dict[str, float]] = {}  # milliseconds by stage

    @property
    def vision(self) -> Session:
        return self._model.vision

    @property
    def free(self) -> int:
        return self._batch.free

    @property
    def unfinished(self) -> int:
        return len(self._spent)

    def start(self, pixels: Feed, frames: int) -> StartedFrames[CrossAttentionCache]:
        began = time.perf_counter()
        return StartedFrames(self._model.encode_image(pixels, frames), frames, began)

    def finish(self, started: StartedFrames[CrossAttentionCache]) -> EncodedFrames[CrossAttentionCache]:
        wait_for(next(iter(started.values.values.values())))
        return EncodedFrames(started.values, _milliseconds(started))

    def add(self, keys: Sequence[Hashable], encoded: EncodedFrames[CrossAttentionCache], *, first: int = 0) -> None:
        spent = {"copy": 0.0}
        with timed(spent, "copy"):
            self._batch.add(keys, encoded.values, first=first)
        vision = encoded.milliseconds + spent["copy"] / max(1, len(keys))
        self._spent |= {key: {"vision": vision, "caption": 0.0, "embed": 0.0} for key in keys}

    def advance(self) -> list[FrameEmbedding]:
        """Generate a token in every caption, and encode the finished ones: when there are enough, or nothing else is
        to be done."""
        taken = {"caption": 0.0, "embed": 0.0}
        with timed(taken, "caption"):
            finished = self._batch.step()
        writing = len(self._spent) - len(self._encoder)
        for key, spent in self._spent.items():
            if key not in self._captions:
                spent["caption"] += taken["caption"] / writing
        encoded: list[EncodedCaption] = []
        with timed(taken, "embed"):
            self._captions |= {one.key: self._tokenizer.caption(one.ids) for one in finished}
            encoded += self._encoder.encode(
                [(one, self._tokenizer.retokenize(self._captions[one.key])) for one in finished]
            )
            if not self._batch.unfinished:
                encoded += self._encoder.run()
        for each in encoded:
            self._spent[each.key]["embed"] = taken["embed"] / len(encoded)
        return [FrameEmbedding(key, vector, self._captions.pop(key), self._spent.pop(key)) for key, vector in encoded]

    def cancel(self) -> None:
        self._batch.cancel()
        self._encoder.cancel()
        self._captions.clear()
        self._spent.clear()


def _milliseconds(started: StartedFrames[Any]) -> float:
    return (time.perf_counter() - started.began) * 1e3 / started.frames


class CaptionRetriever:
    """Finds the nearest caption of a fixed set. ``graph``: the bundle's ``clip``; ``spec``: ``manifest.vlm``."""

    free = 1 << 20  # it keeps vectors alone

    def __init__(self, graph: Session, spec: RetrievedCaption) -> None:
        self.vision = graph
        self._captions = spec.captions
        self._found: list[FrameEmbedding] = []

    @property
    def unfinished(self) -> int:
        return len(self._found)

    def start(self, pixels: Feed, frames: int) -> StartedFrames[Any]:
        began = time.perf_counter()
        return StartedFrames(self.vision.run_values({"pixels": pixels}, ["vector", "caption_index"]), frames, began)

    def finish(self, started: StartedFrames[Any]) -> EncodedFrames[Any]:
        found = {name: value.numpy() for name, value in started.values.items()}
        check_shape(found["vector"], (len(found["caption_index"]), None), output="vector")
        check_shape(found["caption_index"], (len(found["vector"]),), output="caption_index")
        return EncodedFrames(found, _milliseconds(started))

    def add(self, keys: Sequence[Hashable], encoded: EncodedFrames[Any], *, first: int = 0) -> None:
        """See Captioner. Raises DataError (``bad_graph``) for a caption index that is not in the manifest."""
        for row, key in enumerate(keys, first):
            caption = Caption(self._caption(int(encoded.values["caption_index"][row])), ())
            vector = encoded.values["vector"][row]
            self._found.append(FrameEmbedding(key, vector, caption, {"vision": encoded.milliseconds}))

    def advance(self) -> list[FrameEmbedding]:
        found, self._found = self._found, []
        return found

    def cancel(self) -> None:
        self._found.clear()

    def _caption(self, index: int) -> str:
        if not 0 <= index < len(self._captions):
            raise DataError(
                f"graph 'clip' names caption {index} of {len(self._captions)}",
                fix="export the bundle again with this version of flamest-export",
                code="bad_graph",
            )
        return self._captions[index]


def open_captioner(
    bundle: Bundle, open_graph: Callable[[str], Session], *, places: Callable[[VisionLanguageModel], int]
) -> Captioner[Any] | None:
    """Open the captioner of a checked bundle; None when its extractor has no vision-language part.

    ``open_graph`` opens a graph of the bundle by its name. ``places``: captions generated at once by a model.
    """
    spec = bundle.manifest.vlm
    if spec is None:
        return None
    if isinstance(spec, RetrievedCaption):
        return CaptionRetriever(open_graph("clip"), spec)
    return _open_generator(bundle, spec, open_graph, places)


def _open_generator(
    bundle: Bundle,
    spec: VisionLanguage,
    open_graph: Callable[[str], Session],
    places: Callable[[VisionLanguageModel], int],
) -> CaptionGenerator:
    tokenizer = CaptionTokenizer(open_tokenizer(bundle.read(TOKENIZER_FILE), printable_path(bundle.tokenizer)))
    words = open_graph("words") if spec.attention_mode == "text" else None
    model = VisionLanguageModel(open_graph("vision"), open_graph("text"), spec, words=words)
    count = places(model)
    return CaptionGenerator(model, tokenizer, places=count, encoded=min(count, ENCODED_AT_ONCE))
