"""Seeded weights of VideoMAE and CLIP for ``random:*`` that mean something numerically.

Attention is sharp enough to choose. What all inputs share is taken out of an embedding, and what is
left is brought to a deviation of 1, through the weights of the last norm: measured on seeded clips in
float64, and rounded.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .architectures import VideoForm
from .calibration import calibration_clips
from .random_draws import SCORE_GAIN, assign, draw, rounded

if TYPE_CHECKING:
    from torch import Tensor, nn

WATCHED = 6  # clips, images or captions that a norm is measured on,
DEEP, FEW = 4, 3  # and how many of them where there are more layers than that: each takes seconds
WORDS = 5  # of a caption that is watched


def randomise_videomae(net: nn.Module, form: VideoForm, *, seed: int) -> None:
    """Set every weight of a pooling VideoMAE classifier from ``seed``."""
    import torch

    _draw_all(net, "videomae", seed)
    double: Any = copy.deepcopy(net).double()
    watched = WATCHED if double.config.num_hidden_layers <= DEEP else FEW
    clips = calibration_clips(seed, clips=watched, frames=form.frames, size=form.crop, mean=0.45, std=0.225)
    with torch.no_grad():
        # One by one: the published form's attention takes a gigabyte for six clips.
        tokens = [double.videomae(clip[None]).last_hidden_state for clip in torch.from_numpy(clips).transpose(1, 2)]
        _spread(net.fc_norm, double.fc_norm(torch.cat(tokens).mean(1)))


def randomise_clip(model: Any, *, seed: int) -> None:
    """Set every weight of a Hugging Face ``CLIPModel`` from ``seed``; images differ, and so do captions."""
    import torch

    _draw_all(model, "clip", seed)
    double: Any = copy.deepcopy(model).double()
    size, text = model.config.vision_config.image_size, model.config.text_config
    images = calibration_clips(seed, clips=WATCHED, frames=1, size=size, mean=0.45, std=0.27)[:, :, 0]
    generator = np.random.Generator(np.random.PCG64(seed))
    words = generator.integers(text.eos_token_id + 1, text.vocab_size, (WATCHED, WORDS))
    tokens = np.pad(words, ((0, 0), (1, 1)), constant_values=((0, 0), (text.bos_token_id, text.eos_token_id)))
    with torch.no_grad():
        _spread(model.vision_model.post_layernorm, double.vision_model(torch.from_numpy(images)).pooler_output)
        _spread(model.text_model.final_layer_norm, double.text_model(torch.from_numpy(tokens)).pooler_output)


def _draw_all(net: nn.Module, key: str, seed: int) -> None:
    for name, parameter in net.named_parameters():
        assign(parameter, _values(name, draw(f"{key}.{name}", seed, tuple(parameter.shape))))


def _values(name: str, drawn: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if any(part in name for part in ("layernorm", "layer_norm", "layrnorm", "fc_norm")):
        return (1 + 0.1 * drawn) if name.endswith("weight") else 0.1 * drawn
    if "embedding" in name and "patch" not in name:  # of tokens, positions and class
        return drawn
    if name.endswith("bias"):
        return 0.1 * drawn
    if drawn.ndim < 2:  # CLIP's scale of its logits
        return drawn
    weight = drawn / np.float32(np.sqrt(int(np.prod(drawn.shape[1:]))))
    chooses = any(part in name for part in (".query.", ".key.", ".q_proj.", ".k_proj."))
    return SCORE_GAIN * weight if chooses else weight


def _spread(norm: Any, seen: Tensor) -> None:
    """Change a layer norm's weight and bias so that ``seen``, its outputs [N, width], get mean 0 and deviation 1."""
    gain = rounded(np.asarray(1 / seen.std(0).square().mean().sqrt().item()))
    assign(norm.weight, gain * norm.weight.detach().numpy())
    assign(norm.bias, gain * (norm.bias.detach().numpy() - rounded(seen.mean(0).numpy())))
