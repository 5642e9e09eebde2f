"""Inputs of a graph for the comparison with its engine: seeded, and like those that it gets in use.

A graph treats every row of a batch alone (a frame, a clip, a caption), so a few rows are enough: batches of any size
are drawn from them, and their results on the CPU are computed once. The inputs are pictures for frames, token ids of
the vocabulary, masks of both kinds; keys and values of the past and of the image are the graphs' own results, because
noise of another scale would make an attention that no caption has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....base.errors import InvariantError
from ...bundle.graph_records import Graph, GraphUse, Tensor
from ...bundle.manifest import MASKED_SCORE
from ..session import Array, Session
from .profile import Shape, axis_words

SEED = 20_261_130
BATCHES = (1, 3, 16)  # besides the smallest, the usual and the largest of each use
# Sizes of a caption: no past tokens, one, ten; reading a caption of 12 tokens.
STEPS = ({"tokens": 1, "past": 0}, {"tokens": 1, "past": 1}, {"tokens": 1, "past": 10}, {"tokens": 12, "past": 0})
LARGE_BATCH = 16  # larger batches are compared at the usual and the largest sizes only
Sizes = Mapping[str, int]  # by axis
HOST_DTYPES = {"bfloat16": "float32"}  # of arrays that a session takes for tensors of a type that NumPy lacks


@dataclass(frozen=True)
class Setting:
    """Sizes of all axes but that of the rows, with the numbers of rows to compare them at."""

    sizes: Sizes
    batches: tuple[int, ...]

    def __str__(self) -> str:
        return ", ".join(f"{size} {word}" for word, size in self.sizes.items()) or "the graph's sizes"


def row_axis(graph: Graph) -> str:
    """The axis of rows, the first of every input and output; raises InvariantError for a graph without one."""
    first = {tensor.shape[0] for tensor in (*graph.inputs, *graph.outputs) if tensor.shape}
    word = next(iter(first)) if len(first) == 1 else None
    if not isinstance(word, str) or any(not tensor.shape for tensor in (*graph.inputs, *graph.outputs)):
        raise InvariantError(f"graph {graph.file}: expected one axis of rows, first in every tensor, found {first}")
    return word


def compared_settings(graph: Graph, uses: tuple[GraphUse, ...]) -> tuple[Setting, ...]:
    """The settings to compare an engine at: the corners of every use, and captions' own sizes, where a use has them."""
    rows = row_axis(graph)
    wanted: dict[tuple[tuple[str, int], ...], set[int]] = {}
    large: set[tuple[tuple[str, int], ...]] = set()
    for use in uses:
        ranges = {word: size for word, size in use.axes.items() if word != rows}
        corners = [
            {word: size.smallest for word, size in ranges.items()},
            {word: size.usual for word, size in ranges.items()},
            {word: size.largest for word, size in ranges.items()},
            {word: size.smallest if word == "past" else size.largest for word, size in ranges.items()},
        ]
        steps = [{word: step.get(word, ranges[word].usual) for word in ranges} for step in STEPS]
        inside = [one for one in steps if all(ranges[w].smallest <= s <= ranges[w].largest for w, s in one.items())]
        limits = use.axes[rows]
        batches = {size for size in BATCHES if limits.smallest <= size <= limits.largest}
        for one in (*corners, *inside):
            wanted.setdefault(tuple(one.items()), set()).update(batches, (limits.smallest,))
        large |= {tuple(corner.items()) for corner in corners[1:]}
        for corner in corners[1:]:
            wanted[tuple(corner.items())] |= {limits.usual, limits.largest}
    return tuple(
        Setting(dict(sizes), tuple(sorted(size for size in batches if size <= LARGE_BATCH or sizes in large)))
        for sizes, batches in wanted.items()
    )


def shape_of(tensor: Tensor, sizes: Sizes) -> Shape:
    """The tensor's shape where its axes have ``sizes``."""
    return tuple(
        size if isinstance(size, int) else sum(sizes[word] for word in axis_words(tensor.name, size, sizes))
        for size in tensor.shape
    )


@dataclass(frozen=True, eq=False)
class InputSource:
    """Draws the inputs of one graph, ``rows`` rows of each."""

    graph: Graph
    rows: int
    vocabulary: int  # token ids are below
    image: Mapping[str, Array]  # the image's keys and values, ``rows`` rows, by input name; empty: noise

    def draw(self, sizes: Sizes, number: int, past: Mapping[str, Array]) -> dict[str, Array]:
        """Every input by name. ``sizes``: of all axes but the rows'; ``number``: of the setting, which seeds it."""
        random = np.random.default_rng((SEED, number))
        every = {**sizes, row_axis(self.graph): self.rows}
        return {tensor.name: self._draw(tensor, every, random, past) for tensor in self.graph.inputs}

    def _draw(self, tensor: Tensor, sizes: Sizes, random: np.random.Generator, past: Mapping[str, Array]) -> Array:
        shape, dtype = shape_of(tensor, sizes), np.dtype(HOST_DTYPES.get(tensor.dtype, tensor.dtype))
        given = {**self.image, **past}
        if tensor.name in given:
            return np.ascontiguousarray(given[tensor.name].reshape(shape).astype(dtype, copy=False))
        if tensor.name == "token_ids":
            return random.integers(self.vocabulary, size=shape, dtype=np.int64)
        if tensor.name == "positions":
            # A network knows positions for as many tokens as its graph takes at once, at least.
            last = self.graph.axes["tokens"].largest - shape[1] if "tokens" in self.graph.axes else 0
            start = random.integers(max(0, min(sizes.get("past", 0), last)) + 1, size=(self.rows, 1))
            return np.asarray(start + np.arange(shape[1]), dtype=np.int64)
        if tensor.name == "mask":
            return draw_mask(shape, past=sizes.get("past", 0))
        if tensor.name in ("pixels", "frames"):
            return draw_pictures(shape, dtype, random)
        if dtype.kind != "f":
            raise InvariantError(f"graph {self.graph.file}: it is not known what input {tensor.name} means")
        return random.standard_normal(shape).astype(dtype)

    def past(self, session: Session, length: int) -> dict[str, Array]:
        """Keys and values of a past of ``length`` tokens, from a run on ``session`` over as many tokens."""
        names = [tensor.name for tensor in self.graph.inputs if tensor.name.startswith("past_")]
        sizes = {**{word: axis.usual for word, axis in self.graph.axes.items()}, "past": length, "tokens": length}
        empty = {tensor.name: np.zeros(shape_of(tensor, {**sizes, row_axis(self.graph): self.rows}), np.float32)
                 for tensor in self.graph.inputs if tensor.name in names}  # fmt: skip
        if not names or not length:
            return empty
        feeds = self.draw({word: size for word, size in sizes.items() if word != row_axis(self.graph)}, 1000, empty)
        feeds["positions"] = np.broadcast_to(np.arange(length), (self.rows, length))
        feeds["mask"] = np.where(np.arange(2 * length) < length, np.float32(MASKED_SCORE), feeds["mask"])
        present = {name: name.replace("past_", "present_", 1) for name in names}
        found = session.run(feeds, list(present.values()))
        return {name: found[word][:, :, -length:] for name, word in present.items()}


def draw_mask(shape: Shape, *, past: int) -> npt.NDArray[np.float32]:
    """Attention scores to add, float32 [rows, 1, tokens or 1, past + tokens]: 0 keeps, MASKED_SCORE drops.

    Alternately: a whole past and one that begins later (a caption's window); tokens that see all others and tokens that
    see earlier ones only; all tokens real and the last ones padding. A token sees itself.
    """
    rows, _, queries, columns = shape
    tokens = columns - past
    keep = np.ones((rows, queries, columns), dtype=np.bool_)
    for row in range(rows):
        keep[row, :, : past * (row % 3) // 3] = False
        if queries > 1 and row % 2:
            keep[row, :, past:] &= np.tri(tokens, dtype=np.bool_)
        if tokens > 1 and row % 4 >= 2:
            keep[row, :, columns - max(1, tokens // 4) :] = False
        if queries == tokens:
            keep[row, :, past:] |= np.eye(tokens, dtype=np.bool_)
    return np.where(keep, np.float32(0.0), np.float32(MASKED_SCORE))[:, None]


def draw_pictures(shape: Shape, dtype: npt.DTypeLike, random: np.random.Generator) -> Array:
    """Coloured fields with grain, a bright shape that moves from frame to frame: uint8 [rows, (frames,) S, S, 3], or
    float32 [rows, 3, (frames,) S, S], normalised about as networks want it."""
    as_bytes = np.dtype(dtype) == np.uint8
    size, frames = (shape[-2] if as_bytes else shape[-1]), (1 if len(shape) == 4 else shape[1 if as_bytes else 2])
    made = np.empty((shape[0], frames, size, size, 3), dtype=np.uint8)
    cell = -(-size // 6)
    for row in made:
        fields = random.integers(30, 200, size=(6, 6, 3)).repeat(cell, axis=0).repeat(cell, axis=1)[:size, :size]
        colour, side = random.integers(0, 256, size=3), max(2, size // 4)
        y, x = random.integers(size - side + 1, size=2)
        for number, frame in enumerate(row):
            frame[:] = np.clip(fields + random.integers(-20, 21, size=fields.shape), 0, 255)
            moved = (x + number * max(1, size // 16)) % (size - side + 1)
            frame[y : y + side, moved : moved + side] = colour
    if as_bytes:
        return made.reshape(shape)
    normalised = ((made / 255.0 - 0.45) / 0.225).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(normalised, -1, 1).reshape(shape))
