"""Graphs ``vision``, ``text`` and ``words`` compared with Hugging Face's BLIP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...runtime.backends.session import Session
from ...runtime.bundle.manifest import MASKED_SCORE, VisionLanguage, layer_names
from ...runtime.vision_language import TokenIds, VisionLanguageModel
from ..networks.blip import key_values, resumed, text_shape
from .comparison import BATCHES, Comparison, PartParity, pictures, summarise
from .written_graphs import WrittenGraphs

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration


def compare_blip(model: BlipForConditionalGeneration, written: WrittenGraphs, vlm: VisionLanguage) -> PartParity:
    """Graphs ``vision``, ``text`` and, where the caption is encoded alone, ``words`` compared with ``model``.

    Raises DataError (``parity_failed``) when a graph is further off than comparison.py allows, or a caption
    differs although all graphs are fp32. Embeddings are compared given PyTorch's caption.
    """
    names = ("vision", "text", "words") if vlm.attention_mode == "text" else ("vision", "text")
    vision, text = written.open("vision"), written.open("text")
    words = written.open("words") if vlm.attention_mode == "text" else None
    exact = {written.precision(name) for name in names} == {"fp32"}
    deployed = VisionLanguageModel(vision, text, vlm, words=words)
    embedding = "text" if words is None else "words"  # the graph that gives it
    runs: list[Comparison] = []
    captions = equal = 0
    for batch in BATCHES:
        pixels = pictures(batch, vlm.preprocessing)
        expected = captions_of(model, pixels, vlm)
        image = deployed.encode_image(pixels)
        got = deployed.caption_ids(image)
        if exact and got != expected:
            raise DataError(
                f"captions differ from PyTorch's for the same frames: {got}, expected {expected}",
                fix="export in a higher precision (--precision fp32), or other clips with --calibration",
                code="parity_failed",
            )
        captions += batch
        equal += sum(mine == theirs for mine, theirs in zip(got, expected, strict=True))
        runs += _compare_graphs(model, vision, text, pixels, expected)
        embedded = {"embedding": deployed.embed(image, expected)}
        reference = {"embedding": _embedding_of(model, pixels, expected, vlm)}
        if exact or words is not None:  # otherwise graph vision counts too: chain.py compares it
            runs.append(Comparison(embedding, batch, embedded, reference))
    return PartParity({name: summarise(written, name, runs) for name in names}, captions, equal)


def captions_of(
    model: BlipForConditionalGeneration, pixels: npt.NDArray[np.float32], vlm: VisionLanguage
) -> list[TokenIds]:
    """Captions by Hugging Face's ``generate``, without start, end and padding."""
    import torch

    rule = vlm.caption
    rows = model.generate(
        torch.from_numpy(pixels), max_new_tokens=rule.max_new_tokens, do_sample=False, num_beams=1
    ).tolist()
    captions = []
    for row in rows:
        tokens = row[1:]
        captions.append(tuple(tokens[: tokens.index(rule.end_id)] if rule.end_id in tokens else tokens))
    return captions


def _embedding_of(
    model: BlipForConditionalGeneration,
    pixels: npt.NDArray[np.float32],
    captions: list[TokenIds],
    vlm: VisionLanguage,
) -> npt.NDArray[np.float32]:
    """Eq. 6 the long way: each frame and caption by itself, through the text decoder's BERT, or the caption alone."""
    import torch

    rows = []
    with torch.no_grad():
        image = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
        for index, ids in enumerate(captions):
            tokens = torch.tensor([[vlm.caption.cls_id, *ids, vlm.caption.sep_id]])
            hidden = model.text_decoder.bert(
                tokens,
                encoder_hidden_states=None if vlm.attention_mode == "text" else image[index : index + 1],
                is_decoder=vlm.attention_mode.startswith("causal"),
            ).last_hidden_state
            rows.append(hidden[0, -1 if vlm.attention_mode == "causal-last" else 0].numpy())
    return np.stack(rows)


def _compare_graphs(
    model: BlipForConditionalGeneration,
    vision: Session,
    text: Session,
    pixels: npt.NDArray[np.float32],
    captions: list[TokenIds],
) -> Iterator[Comparison]:
    """The image pass, then prefill, one step on its cache, and bidirectional encoding with padding."""
    import torch

    batch, layers = len(pixels), model.config.text_config.num_hidden_layers
    start = model.config.text_config.bos_token_id
    prompt = np.asarray([[start, *(ids or (start,))[:1], start] for ids in captions])
    bert, decoder = model.text_decoder.bert, model.text_decoder
    with torch.no_grad():
        image = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
        first = decoder(torch.from_numpy(prompt), encoder_hidden_states=image, use_cache=True)
        hidden = bert(torch.from_numpy(prompt), encoder_hidden_states=image, is_decoder=True).last_hidden_state
    cross = _cross_cache(key_values(first), layers)
    yield Comparison("vision", batch, vision.run({"pixels": pixels}), cross)

    text_form = text_shape(model)
    shape = (batch, text_form.heads, 0, text_form.head_dim)
    empty = {name: np.zeros(shape, np.float32) for name in layer_names("past", layers)}
    length = prompt.shape[1]
    causal = np.where(np.tri(length, dtype=bool), 0.0, MASKED_SCORE)
    got = text.run({**_tokens(prompt, 0), "mask": _mask(causal, batch), **empty, **cross})
    present = _self_cache(key_values(first), "present", layers)
    expected = {"logits": first.logits[:, -1].numpy(), "hidden": hidden.numpy(), **present}
    yield Comparison("text", batch, got, expected)

    past = {name.replace("present", "past"): got[name] for name in present}
    token = np.full((batch, 1), captions[0][0] if captions[0] else start)
    with torch.no_grad():
        second = decoder(
            torch.from_numpy(token),
            encoder_hidden_states=image,
            use_cache=True,
            **resumed(key_values(first)),
        )
    got = text.run({**_tokens(token, length), "mask": _mask(np.zeros((1, length + 1)), batch), **past, **cross})
    present = _self_cache(key_values(second), "present", layers)
    yield Comparison("text", batch, got, {"logits": second.logits[:, -1].numpy(), **present})

    real = np.ones_like(prompt)
    real[-1, -1] = 0  # the last row is one token shorter
    with torch.no_grad():
        encoded = bert(
            torch.from_numpy(prompt), torch.from_numpy(real), encoder_hidden_states=image, is_decoder=False
        ).last_hidden_state
    padded = np.broadcast_to(np.where(real, 0.0, MASKED_SCORE)[:, None, None], (batch, 1, length, length))
    got = text.run({**_tokens(prompt, 0), "mask": padded.astype(np.float32), **empty, **cross})
    yield Comparison("text", batch, got, {"hidden": encoded.numpy()})


def _tokens(ids: npt.NDArray[np.int64], first: int) -> dict[str, npt.NDArray[np.int64]]:
    positions = np.broadcast_to(np.arange(first, first + ids.shape[1]), ids.shape)
    return {"token_ids": ids, "positions": np.ascontiguousarray(positions)}


def _mask(rows: npt.NDArray[np.float64], batch: int) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(np.broadcast_to(rows, (batch, 1, *rows.shape)), dtype=np.float32)


def _cross_cache(cache: Any, layers: int) -> dict[str, npt.NDArray[np.float32]]:
    """Hugging Face's cached cross-attention keys and values, in the form of the vision graph's outputs."""
    cross = {}
    for layer in range(layers):
        entry = cache.cross_attention_cache.layers[layer]
        scale = np.float32(entry.keys.shape[-1] ** -0.5)
        cross[f"cross_key_{layer:02d}"] = np.ascontiguousarray(entry.keys.numpy().swapaxes(2, 3) * scale)
        cross[f"cross_value_{layer:02d}"] = entry.values.numpy()
    return cross


def _self_cache(cache: Any, prefix: str, layers: int) -> dict[str, npt.NDArray[np.float32]]:
    parts = {}
    for layer in range(layers):
        entry = cache.self_attention_cache.layers[layer]
        parts[f"{prefix}_key_{layer:02d}"] = entry.keys.numpy()
        parts[f"{prefix}_value_{layer:02d}"] = entry.values.numpy()
    return parts
