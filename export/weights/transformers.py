"""VideoMAE and CLIP from a folder as the hub has them: configuration, then every tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra
from ..networks.clip import build_clip
from ..networks.preprocessing import check_stated, clip_frames, videomae_frames
from ..networks.videomae import build_videomae
from .checkpoints import check_tensors, find_weights, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

VIDEOMAE_FILES = "config.json, model.safetensors and preprocessor_config.json"
CLIP_FILES = "config.json, model.safetensors, tokenizer.json and preprocessor_config.json"
# Published VideoMAE files name the biases of queries and values so; transformers 5 has other names, and its first
# versions left these biases at zero without an error (https://github.com/huggingface/transformers/pull/48675).
_RENAMED = {".attention.attention.q_bias": ".attention.attention.query.bias",
            ".attention.attention.v_bias": ".attention.attention.value.bias"}  # fmt: skip


def load_videomae(path: Path) -> nn.Module:
    """The classifier in a folder as the hub has them, or in a weights file inside such a folder.

    Raises DataError naming file and key when something is missing, extra, of another shape, or
    contradicts the configuration.
    """
    folder = path if path.is_dir() else path.parent
    config = _read_config(folder / "config.json", "videomae", "VideoMAEForVideoClassification", VIDEOMAE_FILES)
    check_stated(folder / "preprocessor_config.json", videomae_frames(size=0))
    weights = find_weights(folder, VIDEOMAE_FILES) if path.is_dir() else path
    net = _build(build_videomae, config, folder)
    expected = net.state_dict()
    tensors = {name if name in expected else _renamed(name): value for name, value in read_tensors(weights).items()}
    filled: nn.Module = _fill(net, tensors, file=weights, what="VideoMAEForVideoClassification with this configuration")
    return filled


def load_clip(path: Path) -> Any:
    """The ``CLIPModel`` in such a folder, as ``load_videomae``."""
    folder = path if path.is_dir() else path.parent
    config = _read_config(folder / "config.json", "clip", "CLIPModel", CLIP_FILES)
    check_stated(folder / "preprocessor_config.json", clip_frames(size=0))
    weights = find_weights(folder, CLIP_FILES) if path.is_dir() else path
    model = _build(build_clip, config, folder)
    tensors = read_tensors(weights)
    for tower in ("text_model", "vision_model"):
        _take_position_ids(tensors, f"{tower}.embeddings.position_ids", weights)
    return _fill(model, tensors, file=weights, what="CLIPModel with this configuration")


def _read_config(path: Path, model_type: str, architecture: str, to_bring: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", fix=f"put {to_bring} of the model into {path.parent}"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != model_type:
        raise DataError(f'{path} does not describe this model: expected "model_type": "{model_type}"')
    made_for = config.get("architectures") or [architecture]
    if architecture not in made_for:
        raise DataError(f"{path} describes {made_for[0]}, expected {architecture}")
    return config


def _build(build: Callable[[dict[str, Any]], Any], config: dict[str, Any], folder: Path) -> Any:
    try:
        return build(config)
    except MissingExtra:
        raise
    except Exception as error:  # the library checks fields with exceptions of several kinds
        raise DataError(f"{folder / 'config.json'} describes no network that can be built: {error}") from error


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
    """Older libraries stored the numbers 0, 1, 2, … as a tensor."""
    import torch

    stored = tensors.pop(name, None)
    if stored is not None and not torch.equal(stored.flatten().long(), torch.arange(stored.numel())):
        raise DataError(f"{file}: '{name}' is not 0, 1, 2, …", code="wrong_checkpoint")
