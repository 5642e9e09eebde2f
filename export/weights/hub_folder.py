"""BLIP, CLIP and VideoMAE from a folder as the hub has them: the configuration is checked first, then every tensor.

Two traps decide what is checked of a BLIP. A configuration that does not state the text decoder's heads loads
with 8 where the published captioners have 12, and no tensor has another shape for it
(https://github.com/huggingface/transformers/issues/22625). And newer libraries tie the output
projection to the word embedding, whatever a file holds for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra, StorageError
from ...base.files import read_regular
from ..networks.blip import build_blip
from ..networks.clip import build_clip
from ..networks.preprocessing import blip_frames, check_preprocessor, clip_frames, videomae_frames
from ..networks.videomae import build_videomae
from .checkpoints import check_tensors, find_weights, load_checkpoint
from .source import WeightSource

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BlipForConditionalGeneration

CONFIG_FILE = "config.json"
# As published: the captioner has no safetensors on the hub. A model.safetensors serves as well, where there is one.
BLIP_FILES = (
    "config.json, pytorch_model.bin (or model.safetensors), tokenizer.json (or vocab.txt) and preprocessor_config.json"
)
CLIP_FILES = "config.json, pytorch_model.bin (or model.safetensors), tokenizer.json and preprocessor_config.json"
VIDEOMAE_FILES = "config.json, model.safetensors (or pytorch_model.bin) and preprocessor_config.json"
FILES_TO_BRING = {"blip": BLIP_FILES, "clip": CLIP_FILES, "videomae": VIDEOMAE_FILES}
MAX_CONFIG = 1 << 20  # bytes of one JSON file
# Of any network of these kinds that was published, with room.
LARGEST = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "vocab_size": 200_000,
    "max_position_embeddings": 8192,
    "image_size": 1024,
    "num_frames": 256,
    "projection_dim": 4096,
}
HEAD_WIDTH = 64  # of every published BLIP, in text and vision

_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
_PROJECTION = "text_decoder.cls.predictions.decoder.weight"
_BIAS = "text_decoder.cls.predictions.bias"
_PROJECTION_BIAS = "text_decoder.cls.predictions.decoder.bias"
_POSITION_IDS = "text_decoder.bert.embeddings.position_ids"
# Published VideoMAE files name the biases of queries and values so; transformers 5 has other names, and its first
# versions left these biases at zero without an error (https://github.com/huggingface/transformers/pull/48675).
_RENAMED = {".attention.attention.q_bias": ".attention.attention.query.bias",
            ".attention.attention.v_bias": ".attention.attention.value.bias"}  # fmt: skip


def load_blip(path: Path, source: WeightSource) -> tuple[BlipForConditionalGeneration, str]:
    """The captioner in a folder as the hub has it, or in a weights file inside such a folder; the file's SHA-256.

    ``source`` says which hash is expected. Raises DataError: ``other_weights`` for another hash; naming file and key
    when something is missing, extra, of another shape, or contradicts the configuration.
    """
    folder = path if path.is_dir() else path.parent
    config = read_blip_config(folder / CONFIG_FILE)
    check_preprocessor(folder / "preprocessor_config.json", blip_frames(size=0))
    weights = find_weights(folder, BLIP_FILES) if path.is_dir() else path
    model: BlipForConditionalGeneration = _build(build_blip, config, folder)
    checkpoint = load_checkpoint(weights, sha256=source.expected_sha256(weights))
    fill_blip(model, checkpoint.tensors, file=weights, tied=config["tie_word_embeddings"])
    return model, checkpoint.sha256


def load_clip(path: Path, source: WeightSource) -> tuple[Any, str]:
    """The ``CLIPModel`` in such a folder or file, and the file's SHA-256; raises as ``load_blip``."""
    folder = path if path.is_dir() else path.parent
    config = _read_config(folder / "config.json", "clip", "CLIPModel", CLIP_FILES)
    check_preprocessor(folder / "preprocessor_config.json", clip_frames(size=0))
    weights = find_weights(folder, CLIP_FILES) if path.is_dir() else path
    model = _build(build_clip, config, folder)
    checkpoint = load_checkpoint(weights, sha256=source.expected_sha256(weights))
    tensors = checkpoint.tensors
    for tower in ("text_model", "vision_model"):
        _take_position_ids(tensors, f"{tower}.embeddings.position_ids", weights)
    filled = _fill(model, tensors, file=weights, what="CLIPModel with this configuration")
    return filled, checkpoint.sha256


def load_videomae(path: Path, source: WeightSource) -> tuple[Any, str]:
    """The VideoMAE classifier in such a folder or file, and the file's SHA-256; raises as ``load_blip``."""
    folder = path if path.is_dir() else path.parent
    config = _read_config(folder / "config.json", "videomae", "VideoMAEForVideoClassification", VIDEOMAE_FILES)
    check_preprocessor(folder / "preprocessor_config.json", videomae_frames(size=0))
    weights = find_weights(folder, VIDEOMAE_FILES) if path.is_dir() else path
    net = _build(build_videomae, config, folder)
    expected = net.state_dict()
    checkpoint = load_checkpoint(weights, sha256=source.expected_sha256(weights))
    tensors = {name if name in expected else _renamed(name): value for name, value in checkpoint.tensors.items()}
    filled: nn.Module = _fill(net, tensors, file=weights, what="VideoMAEForVideoClassification with this configuration")
    return filled, checkpoint.sha256


def read_blip_config(path: Path) -> dict[str, Any]:
    """A captioner's config.json, checked; ``tie_word_embeddings`` is set in all its parts. Raises DataError."""
    config = _read_config(path, "blip", "BlipForConditionalGeneration", BLIP_FILES)
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    if "num_attention_heads" not in text:
        raise DataError(
            f"{path} does not state text_config.num_attention_heads: the library would assume 8, "
            "the published captioners have 12",
            fix=f'add "num_attention_heads": 12 to text_config in {path}, if this is a published BLIP captioner',
        )
    for part, values in (("text_config", text), ("vision_config", vision)):
        heads, width = values.get("num_attention_heads", 12), values.get("hidden_size", 768)
        if not isinstance(heads, int) or not isinstance(width, int) or heads * HEAD_WIDTH != width:
            raise DataError(
                f"{path}: {part} has {heads} attention heads for a width of {width}, "
                f"expected heads of {HEAD_WIDTH} as in every published BLIP (12 for a width of 768)",
                fix="download the folder again; config.json was changed",
            )
    tied = all(values.get("tie_word_embeddings", True) for values in (config, text))
    return {
        **config,
        "text_config": {**text, "tie_word_embeddings": tied},
        "vision_config": vision,
        "tie_word_embeddings": tied,
    }


def fill_blip(
    model: BlipForConditionalGeneration, tensors: dict[str, Tensor], *, file: Path, tied: bool = True
) -> None:
    """Set every weight of ``model`` from ``tensors``, which must fit to the last name and shape.

    One exception: names of the same value (the tied output projection and its bias, and
    the numbering of positions) may be given once or several times, and must then be equal.
    """
    expected = model.state_dict()
    complete = dict(tensors)
    _take_position_ids(complete, _POSITION_IDS, file)
    _complete(complete, _BIAS, _PROJECTION_BIAS, file)
    if tied:
        _complete(complete, _WORDS, _PROJECTION, file)
    check_tensors(complete, expected, file=file, what="BlipForConditionalGeneration with this configuration")
    model.load_state_dict(complete, strict=True)


def _complete(tensors: dict[str, Tensor], name: str, alias: str, file: Path) -> None:
    """Give both names where one is there; raise DataError where both are, and differ."""
    import torch

    if name in tensors and alias in tensors:
        if tensors[name].shape == tensors[alias].shape and not torch.equal(tensors[name], tensors[alias]):
            raise DataError(
                f"{file}: '{alias}' and '{name}' differ, expected equal values: the configuration ties them",
                fix='if the model has an output projection of its own, set "tie_word_embeddings": false in config.json',
                code="wrong_checkpoint",
            )
    elif name in tensors:
        tensors[alias] = tensors[name]
    elif alias in tensors:
        tensors[name] = tensors[alias]


def _read_config(path: Path, model_type: str, architecture: str, to_bring: str) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(path, largest=MAX_CONFIG))
    except StorageError as error:
        raise DataError(error.message, fix=f"put {to_bring} of the model into {path.parent}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", fix="download the folder again") from error
    if not isinstance(config, dict) or config.get("model_type") != model_type:
        raise DataError(
            f'{path} describes another model: expected "model_type": "{model_type}"',
            fix="give the folder of that kind of model, as the hub has it",
        )
    _check_sizes(config, path)
    made_for = config.get("architectures") or [architecture]
    if not isinstance(made_for, list) or architecture not in made_for:
        described = made_for[0] if isinstance(made_for, list) else made_for
        raise DataError(
            f"{path} describes {str(described)[:100]}, expected {architecture}",
            fix="give the folder of that kind of model, as the hub has it",
        )
    return config


def _check_sizes(config: dict[str, Any], path: Path) -> None:
    """Refuse sizes of a network that is not built before memory is taken for it."""
    for part in (config, config.get("text_config"), config.get("vision_config")):
        for key, value in (part if isinstance(part, dict) else {}).items():
            largest = LARGEST.get(key)
            if largest is not None and not (isinstance(value, int) and 0 < value <= largest):
                raise DataError(
                    f"{path}: {key} is {str(value)[:40]}, expected 1 to {largest}",
                    fix="download the folder again; config.json was changed",
                    code="wrong_checkpoint",
                )


def _build(build: Callable[[dict[str, Any]], Any], config: dict[str, Any], folder: Path) -> Any:
    try:
        return build(config)
    except MissingExtra:
        raise
    except Exception as error:  # the library checks fields with exceptions of several kinds
        raise DataError(
            f"{folder / CONFIG_FILE} describes no network that can be built: {error}",
            fix="download the folder again; config.json was changed",
        ) from error


def _fill(net: Any, tensors: dict[str, Tensor], *, file: Path, what: str) -> Any:
    check_tensors(tensors, net.state_dict(), file=file, what=what)
    net.load_state_dict(tensors, strict=True)
    return net


def _renamed(name: str) -> str:
    for old, new in _RENAMED.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _take_position_ids(tensors: dict[str, Tensor], name: str, file: Path) -> None:
    """Remove the numbers 0, 1, 2, …, which older libraries stored as a tensor."""
    import torch

    stored = tensors.pop(name, None)
    if stored is not None and not torch.equal(stored.flatten().long(), torch.arange(stored.numel())):
        raise DataError(
            f"{file}: '{name}' is not 0, 1, 2, …", fix="download the published file again", code="wrong_checkpoint"
        )
