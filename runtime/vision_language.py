"""The vision-language model: the caption of a frame, and frame and caption as one vector (paper eqs. 5 and 6).

Two graphs (tensor names and mask convention: bundle/manifest.py). The vision graph runs once per frame; caption and
embedding both use its result (docs/paper.md, reading 2), which equals a two-pass computation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, InvariantError
from .backends.session import Feed, Session, Value, check_shape
from .bundle.manifest import MASKED_SCORE, VisionLanguage, layer_names

TokenIds = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CrossAttentionCache:
    """Cross-attention keys and values of a batch of frames, per layer of the text graph."""

    values: Mapping[str, Value]  # the text graph's own, by input name: cross_key_NN, cross_value_NN
    frames: int


class VisionLanguageModel:
    """Caption and cross-attention embedding of frames (paper eqs. 5 and 6), without PyTorch.

    ``vision``, ``text`` and, for the attention mode ``text``, ``words`` are the bundle's graphs of those
    names, ``spec`` is ``manifest.vlm``. Raises DataError (``bad_graph``) when a graph lacks a tensor
    that ``spec`` promises.
    """

    def __init__(self, vision: Session, text: Session, spec: VisionLanguage, *, words: Session | None = None) -> None:
        self._vision = vision
        self._text = text
        self._words = words
        self.spec = spec
        self._cross = layer_names("cross", spec.text.layers)
        self.past_names = layer_names("past", spec.text.layers)
        self.present_names = layer_names("present", spec.text.layers)
        _check_names("vision", "inputs", vision.inputs, ("pixels",))
        _check_names("vision", "outputs", vision.outputs, self._cross)
        _check_names("text", "inputs", text.inputs, ("token_ids", "positions", "mask", *self.past_names, *self._cross))
        # A graph of schema 3 leaves the choice of the token to its caller, and its past grows (bundle/manifest.py).
        self._chooses = "next_token" in text.outputs
        chosen = ("next_token",) if self._chooses else ()
        _check_names("text", "outputs", text.outputs, (*chosen, "logits", "hidden", *self.present_names))
        self._cache_dtype: np.dtype[np.generic] | None = None  # known with the first image
        if (words is not None) != (spec.attention_mode == "text"):
            raise InvariantError(
                f"graph 'words' belongs to the attention mode 'text' alone, this one is '{spec.attention_mode}'"
            )
        if words is not None:
            _check_names("words", "inputs", words.inputs, ("token_ids", "positions", "mask"))
            _check_names("words", "outputs", words.outputs, ("hidden",))

    @property
    def computes_on_host(self) -> bool:
        """True when the text graph computes in host memory, so that rows can be shared with it (caption_batch.py)."""
        return self._text.computes_on_host

    def borrow(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, Value]:
        """The arrays as values of the text graph, without a copy where possible."""
        return {name: self._text.borrow(array) for name, array in arrays.items()}

    def encode_image(self, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> CrossAttentionCache:
        """Encode frames once for caption and embedding: uint8 [B, S, S, 3], or normalised float32 [B, 3, S, S] where
        the bundle is of schema 3."""
        encoded = self._vision.run_values({"pixels": pixels}, self._cross)
        if self._cache_dtype is None:
            self._cache_dtype = encoded[self._cross[0]].numpy().dtype
        # Copied once and not at every step: the two graphs may run on different backends.
        return CrossAttentionCache({name: self._text.value(value) for name, value in encoded.items()}, len(pixels))

    def caption_ids(self, image: CrossAttentionCache) -> list[TokenIds]:
        """Generate captions greedily: one tuple of token ids per frame, without start and end token.

        Starts from ``start_id`` and takes the likeliest token (the lowest id of equals) until
        ``end_id`` or ``max_new_tokens``. Rows are independent: one that has ended gets
        padding while the others continue.
        """
        rule = self.spec.caption
        captions: list[list[int]] = [[] for _ in range(image.frames)]
        ended = np.zeros(image.frames, dtype=np.bool_)
        tokens = np.full(image.frames, rule.start_id, dtype=np.int64)
        window = max(rule.max_new_tokens - 1, 0) if self._chooses else 0  # otherwise the past grows with every token
        past = self._past(image.frames, window)
        for position in range(rule.max_new_tokens):
            positions = np.full(image.frames, position, dtype=np.int64)
            mask = np.zeros((image.frames, 1, 1, max(window, position) + 1), dtype=np.float32)
            mask[..., : max(window - position, 0)] = MASKED_SCORE
            tokens, present = self.step(image, past, tokens, positions, mask)
            past = {name: present[new] for name, new in zip(self.past_names, self.present_names, strict=True)}
            ended |= tokens == rule.end_id
            if ended.all():
                break
            for row in np.flatnonzero(~ended):
                captions[row].append(int(tokens[row]))
            tokens = np.where(ended, rule.pad_id, tokens)
        return [tuple(ids) for ids in captions]

    def embed(self, image: CrossAttentionCache, token_ids: Sequence[TokenIds]) -> npt.NDArray[np.float32]:
        """Frame and caption as one vector each: float32 [B, width] (paper eq. 6, docs/paper.md, reading 1).

        ``token_ids``: per frame the caption's ids, without [CLS] and [SEP]. The attention mode is the
        manifest's: ``bidirectional`` (position 0, every token sees every other), ``causal-last`` (last
        real token under the causal mask), ``causal-first`` (position 0 under the causal mask, so independent
        of the caption), or ``text`` (position 0 of the caption alone, independent of the frame).
        """
        if len(token_ids) != image.frames:
            raise InvariantError(f"{len(token_ids)} captions given for {image.frames} frames, expected one each")
        rule, mode = self.spec.caption, self.spec.attention_mode
        rows = [(rule.cls_id, *ids, rule.sep_id) for ids in token_ids]
        lengths = np.array([len(row) for row in rows])
        tokens = np.full((len(rows), lengths.max()), rule.pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        mask = _attention_mask(lengths, causal=mode.startswith("causal"))
        feeds: dict[str, Feed] = {"token_ids": tokens, "positions": positions}
        if self._words is not None:
            values = self._words.run_values({**feeds, "mask": mask[:, :, :1]}, ["hidden"])
        else:
            feeds |= {"mask": mask, **self._past(len(rows), 0), **image.values}
            values = self._text.run_values(feeds, ["hidden"])
        hidden: npt.NDArray[np.float32] = values["hidden"].numpy()
        check_shape(hidden, (*tokens.shape, None), output="hidden")
        read_at = lengths - 1 if mode == "causal-last" else np.zeros_like(lengths)
        return np.ascontiguousarray(hidden[np.arange(len(rows)), read_at])

    def step(
        self,
        image: CrossAttentionCache,
        past: Mapping[str, Value],
        tokens: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        mask: npt.NDArray[np.float32],
    ) -> tuple[npt.NDArray[np.int64], dict[str, Value]]:
        """Generate one token in every row: the tokens, int64 [B], and ``past`` with the previous token at its end.

        ``tokens``, ``positions``: [B]; ``past``: by name [B, heads, P, head_dim]; ``mask``: [B, 1, 1, P + 1],
        0 keeps and MASKED_SCORE drops. Present, by name: [B, heads, P, head_dim], the oldest token left out; of a
        schema-3 graph [B, heads, P + 1, head_dim].
        """
        feeds: dict[str, Feed] = {"token_ids": tokens[:, None], "positions": positions[:, None], "mask": mask}
        chosen = "next_token" if self._chooses else "logits"
        values = self._text.run_values({**feeds, **past, **image.values}, [chosen, *self.present_names])
        found = values[chosen].numpy()
        if self._chooses:
            found = check_shape(found, (len(tokens),), output=chosen)
        else:
            found = check_shape(found, (len(tokens), None), output=chosen).argmax(axis=-1)
        return found, {name: values[name] for name in self.present_names}

    def _past(self, rows: int, length: int) -> dict[str, Value]:
        """A past of ``length`` positions of zeros."""
        shape = (rows, self.spec.text.heads, length, self.spec.text.head_dim)
        past = self._text.value(np.zeros(shape, dtype=self._cache_dtype or np.float32))
        return dict.fromkeys(self.past_names, past)


def _check_names(graph: str, side: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    if set(found) != set(wanted):
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        raise DataError(
            f"graph '{graph}': its {side} differ from the manifest: missing {missing}, not expected {extra}",
            fix="export the bundle again with this version of flamest-export",
            code="bad_graph",
        )


def _attention_mask(lengths: npt.NDArray[np.int64], *, causal: bool) -> npt.NDArray[np.float32]:
    """float32 [B, 1, T, T], added to attention scores: row b's first ``lengths[b]`` tokens are real."""
    size = int(lengths.max())
    keep = np.broadcast_to(np.arange(size) < lengths[:, None, None, None], (len(lengths), 1, size, size))
    if causal:
        keep = keep & np.tri(size, dtype=np.bool_)
    return np.where(keep, np.float32(0.0), np.float32(MASKED_SCORE))
