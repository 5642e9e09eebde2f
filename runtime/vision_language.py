"""The vision-language model: what is in a frame, said in words, and frame and words as one vector.

Two graphs (tensor names and mask convention: bundle/manifest.py). The vision graph runs once per frame;
caption and embedding both read its result (docs/paper.md, reading 2), and so equal a two-pass computation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, InvariantError
from .backends.session import Feed, Session, Value
from .bundle.manifest import MASKED, TextShape, VisionLanguage

TokenIds = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CrossAttentionCache:
    """What the text graph reads of a batch of frames: cross-attention keys and values per layer."""

    values: Mapping[str, Value]  # the text graph's own, by input name: cross_key_NN, cross_value_NN
    frames: int


class VisionLanguageModel:
    """Caption and cross-attention embedding of frames (paper eqs. 5 and 6), without PyTorch.

    ``vision``, ``text`` and, for the reading ``text``, ``words`` are the bundle's graphs of those
    names, ``spec`` is ``manifest.vlm``. Raises DataError (``bad_graph``) when a graph lacks a tensor
    that ``spec`` promises.
    """

    def __init__(self, vision: Session, text: Session, spec: VisionLanguage, *, words: Session | None = None) -> None:
        self._vision = vision
        self._text = text
        self._words = words
        self.spec = spec
        self._cross = _layer_names("cross", spec.text)
        self.past_names = _layer_names("past", spec.text)
        self.present_names = _layer_names("present", spec.text)
        _check_names("vision", "inputs", vision.inputs, ("pixels",))
        _check_names("vision", "outputs", vision.outputs, self._cross)
        _check_names("text", "inputs", text.inputs, ("token_ids", "positions", "mask", *self.past_names, *self._cross))
        _check_names("text", "outputs", text.outputs, ("logits", "hidden", *self.present_names))
        if (words is not None) != (spec.attention_mode == "text"):
            raise InvariantError(
                f"graph 'words' belongs to the attention mode 'text' alone, this one is '{spec.attention_mode}'"
            )
        if words is not None:
            _check_names("words", "inputs", words.inputs, ("token_ids", "positions", "mask"))
            _check_names("words", "outputs", words.outputs, ("hidden",))

    @property
    def computes_on_host(self) -> bool:
        """Whether captions are written where NumPy's arrays are, and rows may be shared with it (caption_batch.py)."""
        return self._text.computes_on_host

    def borrow(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, Value]:
        """The arrays as the text graph reads them, without a copy where it can."""
        return {name: self._text.borrow(array) for name, array in arrays.items()}

    def look(self, pixels: npt.NDArray[np.float32]) -> CrossAttentionCache:
        """Encode frames, float32 [B, 3, S, S] (already normalised), once for all that follows."""
        seen = self._vision.run_values({"pixels": pixels}, self._cross)
        # Once, not at every step: the vision graph may run on another backend than the text graph.
        return CrossAttentionCache({name: self._text.value(value) for name, value in seen.items()}, len(pixels))

    def caption_ids(self, memory: CrossAttentionCache) -> list[TokenIds]:
        """Greedy captions: one tuple of token ids per frame, without start and end token.

        Starts from ``start_id`` and takes the likeliest token (the lowest id of equals) until
        ``end_id`` or ``max_new_tokens``. Rows do not see each other: one that has ended is fed
        padding while the others go on.
        """
        rule = self.spec.caption
        captions: list[list[int]] = [[] for _ in range(memory.frames)]
        ended = np.zeros(memory.frames, dtype=np.bool_)
        tokens = np.full(memory.frames, rule.start_id, dtype=np.int64)
        past = self._empty_past(memory.frames)
        for position in range(rule.max_new_tokens):
            positions = np.full(memory.frames, position, dtype=np.int64)
            mask = np.zeros((memory.frames, 1, 1, position + 1), dtype=np.float32)
            logits, present = self.step(memory, past, tokens, positions, mask)
            past = {name: present[new] for name, new in zip(self.past_names, self.present_names, strict=True)}
            tokens = logits.argmax(axis=-1)
            ended |= tokens == rule.end_id
            if ended.all():
                break
            for row in np.flatnonzero(~ended):
                captions[row].append(int(tokens[row]))
            tokens = np.where(ended, rule.pad_id, tokens)
        return [tuple(ids) for ids in captions]

    def embed(self, memory: CrossAttentionCache, token_ids: Sequence[TokenIds]) -> npt.NDArray[np.float32]:
        """Frame and caption as one vector each: float32 [B, width] (paper eq. 6, docs/paper.md, reading 1).

        ``token_ids``: per frame the caption's ids, without [CLS] and [SEP]. The reading is the
        manifest's: ``bidirectional`` (position 0, every token sees every other), ``causal-last`` (last
        real token under the causal mask), ``causal-first`` (position 0 under the causal mask, so blind
        to the caption), or ``text`` (position 0 of the caption alone, blind to the frame).
        """
        if len(token_ids) != memory.frames:
            raise InvariantError(f"{len(token_ids)} captions given for {memory.frames} frames, expected one each")
        rule, attention_mode = self.spec.caption, self.spec.attention_mode
        rows = [(rule.cls_id, *ids, rule.sep_id) for ids in token_ids]
        lengths = np.array([len(row) for row in rows])
        tokens = np.full((len(rows), lengths.max()), rule.pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        mask = _attention_mask(lengths, causal=attention_mode.startswith("causal"))
        feeds: dict[str, Feed] = {"token_ids": tokens, "positions": positions}
        if self._words is not None:
            values = self._words.run_values({**feeds, "mask": mask[:, :, :1]}, ["hidden"])
        else:
            feeds |= {"mask": mask, **self._empty_past(len(rows)), **memory.values}
            values = self._text.run_values(feeds, ["hidden"])
        hidden: npt.NDArray[np.float32] = values["hidden"].numpy()
        read_at = lengths - 1 if attention_mode == "causal-last" else np.zeros_like(lengths)
        return np.ascontiguousarray(hidden[np.arange(len(rows)), read_at])

    def step(
        self,
        memory: CrossAttentionCache,
        past: Mapping[str, Value],
        tokens: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        mask: npt.NDArray[np.float32],
    ) -> tuple[npt.NDArray[np.float32], dict[str, Value]]:
        """One token further in every row: logits float32 [B, vocabulary], and past with the new token behind it.

        ``tokens``, ``positions``: [B]; ``past``: by name [B, heads, P, head_dim]; ``mask``: [B, 1, 1, P + 1],
        0 keeps and MASKED drops. ``present``: by name [B, heads, P + 1, head_dim].
        """
        feeds: dict[str, Feed] = {"token_ids": tokens[:, None], "positions": positions[:, None], "mask": mask}
        values = self._text.run_values({**feeds, **past, **memory.values}, ["logits", *self.present_names])
        return values["logits"].numpy(), {name: values[name] for name in self.present_names}

    def _empty_past(self, rows: int) -> dict[str, Value]:
        shape = (rows, self.spec.text.heads, 0, self.spec.text.head_dim)
        empty = self._text.value(np.empty(shape, dtype=np.float32))
        return dict.fromkeys(self.past_names, empty)


def _layer_names(prefix: str, text: TextShape) -> tuple[str, ...]:
    return tuple(f"{prefix}_{part}_{layer:02d}" for layer in range(text.layers) for part in ("key", "value"))


def _check_names(graph: str, side: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    if set(found) != set(wanted):
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        raise DataError(
            f"graph '{graph}': its {side} are not those of the manifest: missing {missing}, not expected {extra}",
            fix="export the bundle again with this version of flamest-export",
            code="bad_graph",
        )


def _attention_mask(lengths: npt.NDArray[np.int64], *, causal: bool) -> npt.NDArray[np.float32]:
    """float32 [B, 1, T, T], added to attention scores: row b's first ``lengths[b]`` tokens are real."""
    size = int(lengths.max())
    keep = np.broadcast_to(np.arange(size) < lengths[:, None, None, None], (len(lengths), 1, size, size))
    if causal:
        keep = keep & np.tri(size, dtype=np.bool_)
    return np.where(keep, np.float32(0.0), np.float32(MASKED))
