"""VideoMAE: Hugging Face's ``VideoMAEForVideoClassification`` (https://arxiv.org/abs/2203.12602), 16 frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.errors import MissingExtra
from .preprocessing import videomae_frames
from .reference import VideoForm, VideoNetwork, inputs_of, unset

if TYPE_CHECKING:
    from torch import Tensor, nn

# config.json of MCG-NJU/videomae-base-finetuned-kinetics, the fields that decide the network's form.
VIDEOMAE_BASE_CONFIG: dict[str, Any] = {
    "model_type": "videomae",
    "image_size": 224,
    "patch_size": 16,
    "num_frames": 16,
    "tubelet_size": 2,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "use_mean_pooling": True,
    "num_labels": 400,
}
VIDEOMAE_TINY_CONFIG: dict[str, Any] = {
    **VIDEOMAE_BASE_CONFIG,
    "image_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 768,
}


def videomae_form(config: Any) -> VideoForm:
    """Sizes of the network of a Hugging Face ``VideoMAEConfig``."""
    return VideoForm(frames=config.num_frames, crop=config.image_size, width=config.hidden_size)


def build_videomae(config: dict[str, Any]) -> nn.Module:
    """A VideoMAE classifier of that configuration, in evaluation mode; its weights are not set."""
    try:
        import torch
        from transformers import VideoMAEConfig, VideoMAEForVideoClassification
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", extra="export") from error
    with torch.device("meta"):  # but for the table of positions, which is no weight and is computed
        built = VideoMAEForVideoClassification._from_config(VideoMAEConfig(**config), attn_implementation="eager")
    net: nn.Module = built
    return unset(net)


def videomae_module(net: nn.Module) -> nn.Module:
    """frames float32 [B, K, 3, S, S] -> embedding float32 [B, width]: the classifier's input.

    That is the mean of all tokens, normalised, where the configuration pools (as published), and the
    first token where it does not.
    """
    from torch import nn

    whole: Any = net

    class VideoMAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = whole.videomae
            self.norm: Any = whole.fc_norm

        def forward(self, frames: Tensor) -> Tensor:
            tokens = self.encoder(frames).last_hidden_state
            return self.norm(tokens.mean(1)) if self.norm is not None else tokens[:, 0]  # type: ignore[no-any-return]

    return VideoMAE().eval()


def before_classifier(net: nn.Module, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Input of the classifier in Hugging Face's own forward: the reference."""
    whole: Any = net
    (seen,) = inputs_of(whole.classifier, net, np.ascontiguousarray(frames.swapaxes(1, 2)))
    return seen.numpy()


def _built(config: dict[str, Any]) -> tuple[nn.Module, VideoForm]:
    net: Any = build_videomae(config)
    return net, videomae_form(net.config)


VIDEOMAE = VideoNetwork(
    name="videomae",
    full=lambda: _built(VIDEOMAE_BASE_CONFIG),
    tiny=lambda: _built(VIDEOMAE_TINY_CONFIG),
    module=lambda net, _frames: videomae_module(net),
    reference=before_classifier,
    preprocessing=videomae_frames,
    pooling="mean of all tokens, normalised, as the classifier reads it",
)
