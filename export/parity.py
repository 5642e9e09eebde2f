"""The proof of an export: what the written graphs compute is what the reference libraries compute.

The references are Hugging Face's BLIP and PyTorchVideo's network as they are, not the modules that
were exported; the graphs run through the runtime's own session and decoder. The limit is on
max |a - b| / max |b| of each output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, InvariantError
from ..runtime.manifest import MASKED, GraphParity, VisionLanguage
from ..runtime.session import Session, open_session
from ..runtime.vlm import TokenIds, VisionLanguageModel
from .architectures import FRAMES, SlowForm
from .blip import key_values, layer_names, resumed, text_shape
from .calibration import calibration_clips

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration

LIMIT = 1e-4  # largest relative error of any output
BATCHES = (1, 3)
_SEED = 20_260_101  # of the frames compared: not those that random weights were measured on

Arrays = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """One run of one graph: its outputs and the reference's, by name."""

    graph: str
    batch: int
    got: Arrays
    expected: Arrays


@dataclass(frozen=True)
class BlipParity:
    graphs: dict[str, GraphParity]
    captions: int
    captions_equal: bool


def compare_blip(
    model: BlipForConditionalGeneration, folder: Path, spec: VisionLanguage, *, threads: int | None = None
) -> BlipParity:
    """Graphs ``vision`` and ``text`` in ``folder`` beside ``model``.

    Raises DataError (``parity_failed``) when a graph is further off than LIMIT or a caption differs.
    """
    vision, text = (open_session(folder / f"{name}.onnx", threads=threads) for name in ("vision", "text"))
    deployed = VisionLanguageModel(vision, text, spec)
    runs: list[Comparison] = []
    captions = 0
    for batch in BATCHES:
        pixels = _frames(batch, spec.preprocessing.size, spec.preprocessing.mean, spec.preprocessing.std)
        expected = _captions_of(model, pixels, spec)
        memory = deployed.look(pixels)
        got = deployed.caption_ids(memory)
        if got != expected:
            raise DataError(
                f"captions differ from PyTorch's for the same frames: {got}, expected {expected}", code="parity_failed"
            )
        captions += batch
        runs += _compare_graphs(model, vision, text, pixels, expected)
        embedded = {"embedding": deployed.embed(memory, got)}
        runs.append(Comparison("text", batch, embedded, {"embedding": _embedding_of(model, pixels, expected, spec)}))
    return BlipParity({name: summarise(name, runs) for name in ("vision", "text")}, captions, True)


def compare_slow(net: nn.Module, folder: Path, form: SlowForm, *, threads: int | None = None) -> dict[str, GraphParity]:
    """Graphs ``slow`` and ``keyframes`` in ``folder`` beside ``net``; raises as ``compare_blip``."""
    import torch

    slow, keyframes = (open_session(folder / f"{name}.onnx", threads=threads) for name in ("cnn", "keyframes"))
    blocks: Any = net.blocks
    runs = []
    for batch in BATCHES:
        clips = calibration_clips(_SEED, clips=batch, frames=FRAMES, size=form.crop, mean=0.45, std=0.225)
        frames = clips.astype(np.float32)
        runs.append(Comparison("cnn", batch, slow.run({"frames": frames}), {"embedding": _before_proj(net, frames)}))

        small = calibration_clips(_SEED, clips=1, frames=batch, size=form.keyframe_size, mean=0.45, std=0.225)
        video = small.astype(np.float32)
        with torch.no_grad():
            maps = blocks[2](blocks[1](blocks[0](torch.from_numpy(video))))
        expected = {"features": maps.mean(dim=(3, 4))[0].T.numpy()}
        runs.append(Comparison("keyframes", batch, keyframes.run({"frames": video[0].swapaxes(0, 1)}), expected))
    return {name: summarise(name, runs) for name in ("cnn", "keyframes")}


def summarise(graph: str, runs: list[Comparison]) -> GraphParity:
    """The largest differences of ``graph`` over ``runs``; raises DataError (``parity_failed``) beyond LIMIT."""
    mine = [run for run in runs if run.graph == graph]
    if not mine:
        raise InvariantError(f"graph '{graph}' was never compared with PyTorch")
    max_abs = max_rel = 0.0
    for run in mine:
        for name, expected in run.expected.items():
            largest = float(np.abs(expected).max())
            if largest == 0.0:
                raise DataError(
                    f"graph '{graph}', output {name}: the reference output is zero and proves nothing",
                    fix="export weights that are set",
                    code="parity_failed",
                )
            difference = float(np.abs(run.got[name] - expected).max())
            relative = difference / largest
            if not relative <= LIMIT:  # a NaN fails too
                raise DataError(
                    f"graph '{graph}', output {name}, batch {run.batch}: relative error {relative:.2e} "
                    f"against PyTorch, expected at most {LIMIT:.0e}",
                    fix="report this with the versions that flamest-export doctor prints",
                    code="parity_failed",
                )
            max_abs, max_rel = max(max_abs, difference), max(max_rel, relative)
    return GraphParity(max_abs=max_abs, max_rel=max_rel, batches=BATCHES)


def _frames(
    count: int, size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> npt.NDArray[np.float32]:
    rgb = calibration_clips(_SEED, clips=count, frames=1, size=size, mean=0.0, std=1.0)[:, :, 0]
    return np.asarray((rgb - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1)), dtype=np.float32)


def _captions_of(
    model: BlipForConditionalGeneration, pixels: npt.NDArray[np.float32], spec: VisionLanguage
) -> list[TokenIds]:
    """What Hugging Face's ``generate`` says, without start, end and padding."""
    import torch

    rule = spec.caption
    rows = model.generate(
        torch.from_numpy(pixels), max_new_tokens=rule.max_new_tokens, do_sample=False, num_beams=1
    ).tolist()
    captions = []
    for row in rows:
        said = row[1:]
        captions.append(tuple(said[: said.index(rule.end_id)] if rule.end_id in said else said))
    return captions


def _embedding_of(
    model: BlipForConditionalGeneration,
    pixels: npt.NDArray[np.float32],
    captions: list[TokenIds],
    spec: VisionLanguage,
) -> npt.NDArray[np.float32]:
    """Eq. 6 the long way: each frame and caption by itself, through the text decoder's BERT."""
    import torch

    rows = []
    with torch.no_grad():
        image = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
        for index, ids in enumerate(captions):
            tokens = torch.tensor([[spec.caption.cls_id, *ids, spec.caption.sep_id]])
            hidden = model.text_decoder.bert(
                tokens,
                encoder_hidden_states=image[index : index + 1],
                is_decoder=spec.reading != "bidirectional",
            ).last_hidden_state
            rows.append(hidden[0, -1 if spec.reading == "causal-last" else 0].numpy())
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
    cross = _cross_memory(key_values(first), layers)
    yield Comparison("vision", batch, vision.run({"pixels": pixels}), cross)

    text_form = text_shape(model)
    shape = (batch, text_form.heads, 0, text_form.head_dim)
    empty = {name: np.zeros(shape, np.float32) for name in layer_names("past", layers)}
    length = prompt.shape[1]
    causal = np.where(np.tri(length, dtype=bool), 0.0, MASKED)
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
    padded = np.broadcast_to(np.where(real, 0.0, MASKED)[:, None, None], (batch, 1, length, length))
    got = text.run({**_tokens(prompt, 0), "mask": padded.astype(np.float32), **empty, **cross})
    yield Comparison("text", batch, got, {"hidden": encoded.numpy()})


def _tokens(ids: npt.NDArray[np.int64], first: int) -> dict[str, npt.NDArray[np.int64]]:
    positions = np.broadcast_to(np.arange(first, first + ids.shape[1]), ids.shape)
    return {"token_ids": ids, "positions": np.ascontiguousarray(positions)}


def _mask(rows: npt.NDArray[np.float64], batch: int) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(np.broadcast_to(rows, (batch, 1, *rows.shape)), dtype=np.float32)


def _cross_memory(cache: Any, layers: int) -> dict[str, npt.NDArray[np.float32]]:
    """Hugging Face's cached cross-attention keys and values, in the form of the vision graph's outputs."""
    memory = {}
    for layer in range(layers):
        entry = cache.cross_attention_cache.layers[layer]
        scale = np.float32(entry.keys.shape[-1] ** -0.5)
        memory[f"cross_key_{layer:02d}"] = np.ascontiguousarray(entry.keys.numpy().swapaxes(2, 3) * scale)
        memory[f"cross_value_{layer:02d}"] = entry.values.numpy()
    return memory


def _self_cache(cache: Any, prefix: str, layers: int) -> dict[str, npt.NDArray[np.float32]]:
    parts = {}
    for layer in range(layers):
        entry = cache.self_attention_cache.layers[layer]
        parts[f"{prefix}_key_{layer:02d}"] = entry.keys.numpy()
        parts[f"{prefix}_value_{layer:02d}"] = entry.values.numpy()
    return parts


def _before_proj(net: nn.Module, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What enters the last dense layer in PyTorchVideo's own forward, averaged over its positions."""
    import torch

    blocks: Any = net.blocks
    seen: list[Any] = []
    hook = blocks[5].proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            net(torch.from_numpy(frames))
    finally:
        hook.remove()
    return seen[0].mean(dim=(1, 2, 3)).numpy()  # type: ignore[no-any-return]
