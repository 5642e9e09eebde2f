"""A BLIP captioner from files: configuration checked first, then every tensor.

Two traps decide what is checked. A configuration that does not state the text
decoder's heads loads with 8 where the published captioners have 12, and no tensor has another shape
for it (https://github.com/huggingface/transformers/issues/22625). And newer libraries tie the output
projection to the word embedding, whatever a file holds for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra
from ..networks.architectures import build_blip
from ..networks.preprocessing import blip_frames, check_stated
from .checkpoints import check_tensors, find_weights, read_tensors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BlipForConditionalGeneration

CONFIG_FILE = "config.json"
FILES_TO_BRING = "config.json, model.safetensors, tokenizer.json (or vocab.txt) and preprocessor_config.json"
HEAD_WIDTH = 64  # of every published BLIP, in text and vision

_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
_PROJECTION = "text_decoder.cls.predictions.decoder.weight"
_BIAS = "text_decoder.cls.predictions.bias"
_PROJECTION_BIAS = "text_decoder.cls.predictions.decoder.bias"
_POSITION_IDS = "text_decoder.bert.embeddings.position_ids"


def load_blip(path: Path) -> BlipForConditionalGeneration:
    """The captioner in a folder as the hub has them, or in a weights file inside such a folder.

    Raises DataError naming file and key when something is missing, extra, of another shape, or
    contradicts the configuration.
    """
    folder = path if path.is_dir() else path.parent
    config = read_config(folder / CONFIG_FILE)
    check_stated(folder / "preprocessor_config.json", blip_frames(size=0))
    weights = find_weights(folder, FILES_TO_BRING) if path.is_dir() else path
    try:
        model = build_blip(config)
    except MissingExtra:
        raise
    except Exception as error:  # the library checks fields with exceptions of several kinds
        raise DataError(f"{folder / CONFIG_FILE} describes no network that can be built: {error}") from error
    fill_blip(model, read_tensors(weights), file=weights, tied=config["tie_word_embeddings"])
    return model


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a captioner, checked; ``tie_word_embeddings`` is set in all its parts.

    Raises DataError.
    """
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", fix=f"put {FILES_TO_BRING} of the model into {path.parent}"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != "blip":
        raise DataError(f'{path} does not describe a BLIP model: expected "model_type": "blip"')
    made_for = config.get("architectures") or ["BlipForConditionalGeneration"]
    if "BlipForConditionalGeneration" not in made_for:
        raise DataError(f"{path} describes {made_for[0]}, expected a captioner (BlipForConditionalGeneration)")
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
                f"expected heads of {HEAD_WIDTH} as in every published BLIP (12 for a width of 768)"
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

    The one leeway: names that stand for the same value (the tied output projection and its bias, and
    the numbering of positions) may be given once or several times, and must then be equal.
    """
    expected = model.state_dict()
    complete = dict(tensors)
    _take_position_ids(complete, expected[_WORDS].shape[1], file)
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


def _take_position_ids(tensors: dict[str, Tensor], width: int, file: Path) -> None:
    """Older libraries stored the numbers 0, 1, 2, … as a tensor."""
    import torch

    stored = tensors.pop(_POSITION_IDS, None)
    if stored is not None and not torch.equal(stored.flatten().long(), torch.arange(stored.numel())):
        raise DataError(f"{file}: '{_POSITION_IDS}' is not 0, 1, 2, …", code="wrong_checkpoint")
