"""Graphs ``vision``, ``text`` and ``words`` compared with Hugging Face's BLIP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...runtime.backends.session import Feed, Session
from ...runtime.bundle.manifest import MASKED_SCORE, VisionLanguage, layer_names
from ...runtime.vision_language import TokenIds, VisionLanguageModel
from ..networks.blip import key_values, resumed, text_shape
from ..networks.frame_bytes import normalise_bytes
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
        rgb = pictures(batch, vlm.preprocessing.size)
        pixels = normalise_bytes(rgb, vlm.preprocessing)
        expected = captions_of(model, pixels, vlm)
        image = deployed.encode_image(written.frames("vision", rgb, vlm.preprocessing))
        got = deployed.caption_ids(image)
        if exact and got != expected:
            raise DataError(
                f"captions differ from PyTorch's for the same frames: {got}, expected {expected}",
                fix="export in a higher precision (--precision fp32), or other clips with --calibration",
                code="parity_failed",
            )
        captions += batch
        equal += sum(mine == theirs for mine, theirs in zip(got, expected, strict=True))
        reference = _Reference(model, pixels, expected)
        seen = vision.run({"pixels": written.frames("vision", rgb, vlm.preprocessing)})
        runs.append(Comparison("vision", batch, seen, reference.cross))
        runs += _compare_text(reference, text, written)
        embedded = {"embedding": deployed.embed(image, expected)}
        if exact or words is not None:  # otherwise graph vision counts too: chain.py compares it
            wanted = {"embedding": _embedding_of(model, pixels, expected, vlm)}
            runs.append(Comparison(embedding, batch, embedded, wanted))
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


class _Reference:
    """Results of Hugging Face's text decoder: for a prompt, for one token after it, and for the prompt as a whole."""

    def __init__(
        self, model: BlipForConditionalGeneration, pixels: npt.NDArray[np.float32], captions: list[TokenIds]
    ) -> None:
        import torch

        decoder, bert, layers = model.text_decoder, model.text_decoder.bert, model.config.text_config.num_hidden_layers
        start = model.config.text_config.bos_token_id
        self.layers, self.form = layers, text_shape(model)
        self.prompt = np.asarray([[start, *(ids or (start,))[:1], start] for ids in captions])
        self.token = np.full((len(pixels), 1), captions[0][0] if captions[0] else start)
        self.real = np.ones_like(self.prompt)
        self.real[-1, -1] = 0  # the last row of the encoded ones is a token shorter
        prompt, real = torch.from_numpy(self.prompt), torch.from_numpy(self.real)
        with torch.no_grad():
            image = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
            first = decoder(prompt, encoder_hidden_states=image, use_cache=True)
            hidden = bert(prompt, encoder_hidden_states=image, is_decoder=True).last_hidden_state
            self.cross = _cross_cache(key_values(first), layers)
            present = _self_cache(key_values(first), "present", layers)
            self.read = {"logits": first.logits[:, -1].numpy(), "hidden": hidden.numpy(), **present}
            cache = resumed(key_values(first))
            second = decoder(torch.from_numpy(self.token), encoder_hidden_states=image, use_cache=True, **cache)
            present = _self_cache(key_values(second), "present", layers)
            self.step = {"logits": second.logits[:, -1].numpy(), **present}
            encoded = bert(prompt, real, encoder_hidden_states=image, is_decoder=False).last_hidden_state
        self.encoded = {"hidden": encoded.numpy()}


def _compare_text(reference: _Reference, text: Session, written: WrittenGraphs) -> Iterator[Comparison]:
    """A prompt, one step on its cache, and bidirectional encoding with padding.

    The window of keys and values is one longer than the prompt; a text graph of schema 3 has none.
    """
    batch, length = reference.prompt.shape
    window = length + 1 if "next_token" in text.outputs else 0
    cross = written.caches("text", reference.cross)

    def run(tokens: npt.NDArray[np.int64], first: int, past: Mapping[str, npt.NDArray[Any]], mask: Any) -> Any:
        feeds: dict[str, Feed] = {
            **_tokens(tokens, first),
            "mask": np.ascontiguousarray(mask, dtype=np.float32),
            **past,
            **cross,
        }
        return text.run(feeds)

    def compared(got: Mapping[str, npt.NDArray[Any]], expected: Mapping[str, npt.NDArray[np.float32]]) -> Comparison:
        if "logits" in expected and window:
            _check_choice(got, expected["logits"], exact=written.precision("text") == "fp32")
        real = {name: _last(values, expected[name]) for name, values in got.items() if name in expected}
        return Comparison("text", batch, real, expected)

    causal = np.where(np.tri(length, dtype=bool), 0.0, MASKED_SCORE)
    before = np.full((length, window), MASKED_SCORE)
    got = run(reference.prompt, 0, _past(reference, window, written), _rows(np.hstack([before, causal]), batch))
    yield compared(got, reference.read)

    past = {name.replace("present", "past"): array for name, array in got.items() if name.startswith("present")}
    unused = max(window - length, 0)
    seen = np.where(np.arange(unused + length + 1) < unused, MASKED_SCORE, 0.0)
    yield compared(run(reference.token, length, past, _rows(seen[None], batch)), reference.step)

    padded = np.where(reference.real, 0.0, MASKED_SCORE)[:, None, None]
    padded = np.broadcast_to(padded, (batch, 1, length, length))
    yield compared(run(reference.prompt, 0, _past(reference, 0, written), padded), reference.encoded)


def _check_choice(got: Mapping[str, npt.NDArray[Any]], logits: npt.NDArray[np.float32], *, exact: bool) -> None:
    """Raise DataError unless the chosen token is the likeliest by the graph's logits, and ``exact`` by PyTorch's."""
    for whose, values in (("its own", got["logits"]), *((("PyTorch's", logits),) if exact else ())):
        likeliest = values.argmax(axis=-1)  # the lowest of equals
        if not np.array_equal(got["next_token"], likeliest):
            raise DataError(
                f"graph 'text': next_token is {got['next_token'].tolist()}, expected {likeliest.tolist()} by {whose} "
                "logits",
                fix="report this with the versions that flamest-export doctor prints",
                code="parity_failed",
            )


def _past(reference: _Reference, length: int, written: WrittenGraphs) -> dict[str, npt.NDArray[Any]]:
    """A past of ``length`` positions of zeros."""
    shape = (len(reference.prompt), reference.form.heads, length, reference.form.head_dim)
    return written.caches("text", {name: np.zeros(shape, np.float32) for name in layer_names("past", reference.layers)})


def _last(values: npt.NDArray[Any], expected: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The last positions of keys and values, as many as are expected; others as they are. In float32."""
    kept = values[:, :, -expected.shape[2] :] if values.ndim == 4 else values
    return np.asarray(kept, np.float32)


def _tokens(ids: npt.NDArray[np.int64], first: int) -> dict[str, npt.NDArray[np.int64]]:
    positions = np.broadcast_to(np.arange(first, first + ids.shape[1]), ids.shape)
    return {"token_ids": ids, "positions": np.ascontiguousarray(positions)}


def _rows(mask: npt.NDArray[np.float64], batch: int) -> npt.NDArray[np.float64]:
    """The same mask [tokens, past + tokens] for every row: [batch, 1, tokens, past + tokens]."""
    return np.broadcast_to(mask, (batch, 1, *mask.shape))


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
