"""The vision-language part of an extractor: prepared frames in, one vector and one caption out.

Two ways (manifest.py): a ``Writer`` writes a caption and reads it with the frame (paper eqs. 5 and 6),
a ``Retriever`` finds the nearest of the captions that were written beforehand (NOTES decision 10).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, MissingExtra
from .bundle import Bundle
from .manifest import TOKENIZER_FILE, RetrievedCaption
from .records import Caption
from .session import Session
from .stages import timed
from .vlm import VisionLanguageModel

if TYPE_CHECKING:
    import tokenizers

Vector = npt.NDArray[np.float32]


class Writer:
    """Captions frames and embeds caption and frame. ``model`` and ``tokenizer`` are those of one bundle."""

    def __init__(self, model: VisionLanguageModel, tokenizer: tokenizers.Tokenizer) -> None:
        self.model = model
        self._tokenizer = tokenizer

    def describe(self, pixels: Vector, stages: dict[str, float]) -> tuple[Vector, Caption]:
        """float32 [B, 3, S, S] -> the mean of the frames' embeddings [width], and the first frame's caption."""
        with timed(stages, "vision"):
            memory = self.model.look(pixels)
        with timed(stages, "caption"):
            captions = [
                Caption(self._tokenizer.decode(list(ids), skip_special_tokens=True), ids)
                for ids in self.model.caption_ids(memory)
            ]
        with timed(stages, "embed"):
            # NOTES decision 1: the caption's text is tokenised again and read with the frame.
            again = [tuple(self._tokenizer.encode(said.text, add_special_tokens=False).ids) for said in captions]
            vectors = self.model.embed(memory, again)
        return _mean(vectors), captions[0]


class Retriever:
    """Finds the nearest caption of a fixed set. ``graph`` is the bundle's ``clip``, ``spec`` its manifest's vlm."""

    def __init__(self, graph: Session, spec: RetrievedCaption) -> None:
        self._graph = graph
        self._captions = spec.captions

    def describe(self, pixels: Vector, stages: dict[str, float]) -> tuple[Vector, Caption]:
        """As ``Writer.describe``. Raises DataError when the graph names a caption that is not in the manifest."""
        with timed(stages, "vision"):
            found = self._graph.run({"pixels": pixels}, ["vector", "caption_index"])
        index = int(found["caption_index"][0])
        if not 0 <= index < len(self._captions):
            raise DataError(
                f"graph 'clip' names caption {index} of {len(self._captions)}",
                fix="export the bundle again with this version of flamest-export",
                code="bad_graph",
            )
        return _mean(found["vector"]), Caption(self._captions[index], ())


def open_describer(bundle: Bundle, open_graph: Callable[[str], Session]) -> Writer | Retriever | None:
    """The describer of a checked bundle; None when its extractor has no vision-language part.

    ``open_graph`` opens a graph of the bundle by its name.
    """
    spec = bundle.manifest.vlm
    if spec is None:
        return None
    if isinstance(spec, RetrievedCaption):
        return Retriever(open_graph("clip"), spec)
    tokenizer = _open_tokenizer(bundle)
    words = open_graph("words") if spec.reading == "text" else None
    return Writer(VisionLanguageModel(open_graph("vision"), open_graph("text"), spec, words=words), tokenizer)


def _mean(vectors: Vector) -> Vector:
    """float32 [B, width] -> float32 [width]; one row comes through to the bit."""
    return np.asarray(vectors.mean(axis=0, dtype=np.float32))


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
