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
from .backends.session import NO_ROWS, Array, Feed, Rows, Session, Shape, Value, check_shape
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
        # A text graph of schema 3 leaves the choice of the token to its caller, and its present is one position longer
        # than its past (bundle/manifest.py).
        self._chooses = "next_token" in text.outputs
        chosen = ("next_token",) if self._chooses else ()
        _check_names("text", "outputs", text.outputs, (*chosen, "logits", "hidden", *self.present_names))
        self._no_past: dict[int, dict[str, Rows]] = {}  # by number of rows
        if (words is not None) != (spec.attention_mode == "text"):
            raise InvariantError(
                f"graph 'words' belongs to the attention mode 'text' alone, this one is '{spec.attention_mode}'"
            )
        if words is not None:
            _check_names("words", "inputs", words.inputs, ("token_ids", "positions", "mask"))
            _check_names("words", "outputs", words.outputs, ("hidden",))

    @property
    def computes_on_host(self) -> bool:
        """True when the text graph computes in host memory."""
        return self._text.computes_on_host

    @property
    def window(self) -> int:
        """Positions of the past in a caption step: room for all tokens before the newest."""
        return max(0, self.spec.caption.max_new_tokens - 1)

    @property
    def most_rows(self) -> int | None:
        """The most frames in one run of the text graph; None: no bound."""
        return self._text.largest_batch

    @property
    def vision(self) -> Session:
        return self._vision

    def rows(self, input_name: str, shape: Shape) -> Rows:
        """Zeroed memory for an input of the text graph (session.py)."""
        return self._text.rows(input_name, shape)

    def encode_image(self, pixels: Feed, frames: int | None = None) -> CrossAttentionCache:
        """Encode frames once for caption and embedding: uint8 [B, S, S, 3], or normalised float32 [B, 3, S, S] where
        the bundle is of schema 3. ``frames``: B, needed for a Value."""
        count = len(pixels) if isinstance(pixels, np.ndarray) else frames
        if count is None:
            raise InvariantError("the number of frames of a Value is not given")
        encoded = self._vision.run_values({"pixels": pixels}, self._cross)
        # Copied once and not at every step: the two graphs may run on different backends.
        return CrossAttentionCache({name: self._text.value(value) for name, value in encoded.items()}, count)

    def caption_ids(self, image: CrossAttentionCache) -> list[TokenIds]:
        """Generate captions greedily: one tuple of token ids per frame, without start and end token.

        Starts from ``start_id`` and takes the likeliest token (the lowest id of equals) until
        ``end_id`` or ``max_new_tokens``. Rows are independent: one that has ended gets
        padding while the others continue. CaptionBatch gives the same, and a place that is free to the next frame.
        """
        rule = self.spec.caption
        captions: list[list[int]] = [[] for _ in range(image.frames)]
        ended = np.zeros(image.frames, dtype=np.bool_)
        tokens = np.full(image.frames, rule.start_id, dtype=np.int64)
        zeros = self._past(image.frames, self.window)
        past: Mapping[str, Value] = {name: rows.first(image.frames) for name, rows in zeros.items()}
        for position in range(rule.max_new_tokens):
            tokens, past = self.step(image.values, past, tokens, np.full(image.frames, position, dtype=np.int64))
            ended |= tokens == rule.end_id
            if ended.all():
                break
            for row in np.flatnonzero(~ended):
                captions[row].append(int(tokens[row]))
            tokens = np.where(ended, rule.pad_id, tokens)
        return [tuple(ids) for ids in captions]

    def embed(
        self, image: CrossAttentionCache, token_ids: Sequence[TokenIds], *, length: int = 0
    ) -> npt.NDArray[np.float32]:
        """Frame and caption as one vector each: float32 [B, width] (paper eq. 6, docs/paper.md, reading 1).

        ``token_ids``: per frame the caption's ids, without [CLS] and [SEP]. The attention mode is the
        manifest's: ``bidirectional`` (position 0, every token sees every other), ``causal-last`` (last
        real token under the causal mask), ``causal-first`` (position 0 under the causal mask, so independent
        of the caption), or ``text`` (position 0 of the caption alone, independent of the frame).
        ``length``: rows are padded to at least so many tokens.
        """
        if len(token_ids) != image.frames:
            raise InvariantError(f"{len(token_ids)} captions given for {image.frames} frames, expected one each")
        rule, mode = self.spec.caption, self.spec.attention_mode
        rows = [(rule.cls_id, *ids, rule.sep_id) for ids in token_ids]
        lengths = np.array([len(row) for row in rows])
        size = max(length, int(lengths.max()))
        tokens = np.full((len(rows), size), rule.pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
        positions = np.broadcast_to(np.arange(size), tokens.shape)
        mask = _attention_mask(lengths, size, causal=mode.startswith("causal"))
        feeds: dict[str, Feed] = {"token_ids": tokens, "positions": positions}
        if self._words is not None:
            values = self._words.run_values({**feeds, "mask": mask[:, :, :1]}, ["hidden"])
        else:
            if len(rows) not in self._no_past:
                self._no_past[len(rows)] = self._past(len(rows), 0)
            empty = {name: past.first(len(rows)) for name, past in self._no_past[len(rows)].items()}
            values = self._text.run_values({**feeds, "mask": mask, **empty, **image.values}, ["hidden"])
        hidden: npt.NDArray[np.float32] = values["hidden"].numpy()
        check_shape(hidden, (*tokens.shape, None), output="hidden")
        read_at = lengths - 1 if mode == "causal-last" else np.zeros_like(lengths)
        return np.ascontiguousarray(hidden[np.arange(len(rows)), read_at])

    def step(
        self,
        cross: Mapping[str, Value],
        past: Mapping[str, Value],
        tokens: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        *,
        into: Mapping[str, Rows] = NO_ROWS,
    ) -> tuple[npt.NDArray[np.int64], Mapping[str, Value]]:
        """Generate one token in every row: the tokens, int64 [B], and the past with the previous token at its end.

        ``tokens``, ``lengths``: [B], each row's newest token, and how many came before it; their keys and values are
        the last ones of the row's ``past``, by name [B, heads, window, head_dim]. ``into``: by the same names, where
        the new past is written; otherwise it is a Value of its own.
        """
        feeds: dict[str, Feed] = {
            "token_ids": tokens[:, None],
            "positions": lengths[:, None],
            "mask": _window_mask(lengths, self.window),
        }
        chosen = "next_token" if self._chooses else "logits"
        names = dict(zip(self.past_names, self.present_names, strict=True))
        written = {names[name]: rows for name, rows in into.items()} if self._chooses else NO_ROWS
        values = self._text.run_values({**feeds, **past, **cross}, [chosen, *names.values()], into=written)
        found = values[chosen].numpy()
        if self._chooses:
            check_shape(found, (len(tokens),), output=chosen)
            return found, {name: values[new] for name, new in names.items()}
        found = check_shape(found, (len(tokens), None), output=chosen).argmax(axis=-1)
        return found, {
            name: self._slid(values[new].numpy(), into.get(name), present_name=new) for name, new in names.items()
        }

    def _slid(self, present: Array, into: Rows | None, *, present_name: str) -> Value:
        """The window of a graph that does not slide it: all but the oldest position, through the host."""
        check_shape(present, (None, None, self.window + 1, None), output=present_name)
        value = self._text.value(np.ascontiguousarray(present[:, :, 1:]))
        if into is None:
            return value
        for row in range(len(present)):
            into.put(row, value, row)
        return into.first(len(present))

    def _past(self, rows: int, length: int) -> dict[str, Rows]:
        """A past of ``length`` positions of zeros."""
        shape = (rows, self.spec.text.heads, length, self.spec.text.head_dim)
        return {name: self._text.rows(name, shape) for name in self.past_names}


def _check_names(graph: str, side: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    if set(found) != set(wanted):
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        raise DataError(
            f"graph '{graph}': its {side} differ from the manifest: missing {missing}, not expected {extra}",
            fix="export the bundle again with this version of flamest-export",
            code="bad_graph",
        )


def _attention_mask(lengths: npt.NDArray[np.int64], size: int, *, causal: bool) -> npt.NDArray[np.float32]:
    """float32 [B, 1, T, T], T = ``size``, added to attention scores: row b's first ``lengths[b]`` tokens are real."""
    keep = np.broadcast_to(np.arange(size) < lengths[:, None, None, None], (len(lengths), 1, size, size))
    if causal:
        keep = keep & np.tri(size, dtype=np.bool_)
    return np.where(keep, np.float32(0.0), np.float32(MASKED_SCORE))


def _window_mask(lengths: npt.NDArray[np.int64], window: int) -> npt.NDArray[np.float32]:
    """float32 [B, 1, 1, window + 1]: each row's own tokens so far, the last ones of the window, and the newest."""
    keep = np.arange(window + 1) >= window - lengths[:, None]
    return np.where(keep, np.float32(0.0), np.float32(MASKED_SCORE))[:, None, None]
