"""ActionCLIP's loss and prompts (Wang et al. 2021, https://arxiv.org/abs/2109.08472).

A label is not a number but a sentence. A batch's clips and its labels' sentences are compared each with
each, and the similarities are to match the table of which clip and which sentence share a class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Ours, in the manner of the paper's: the label in front, within and at the end of a sentence, and alone.
PROMPTS = (
    "a video of {}",
    "{}",
    "{} in a video",
    "a picture of {}",
    "the action is {}",
    "this video is of {}",
    "{} is the action",
    "{} on video",
)
TARGET_SHARPNESS = 10.0  # of the published code: targets are softmax(10 · match), not 0 and 1


def class_words(label: str) -> str:
    """A folder's name as words: ``ApplyLipstick`` and ``apply_lipstick`` are both "apply lipstick"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label)
    return " ".join(re.split(r"[\W_]+", spaced)).strip().lower()


def class_sentences(labels: Sequence[str], prompts: Sequence[str] = PROMPTS) -> list[list[str]]:
    """[P][K]: every label in every prompt."""
    return [[prompt.format(class_words(label)) for label in labels] for prompt in prompts]


def contrastive_loss(clips: Tensor, texts: Tensor, y: Tensor, scale: Tensor, *, sharpness: float) -> Tensor:
    """(KL(q ‖ p of clip to text) + KL(q ‖ p of text to clip)) / 2, each the mean over its rows.

    ``clips``, ``texts``: float32 [B, D] of unit length, row i of both of class ``y[i]`` (int64 [B]);
    ``scale``: what similarities are multiplied by before the softmax. q is softmax(sharpness · match), match 1
    where two rows share a class and else 0, as in the authors' code
    (https://github.com/sallymmx/ActionCLIP); it is symmetric.
    """
    import torch.nn.functional as F

    match = (y[:, None] == y[None, :]).to(clips.dtype)
    target = F.log_softmax(sharpness * match, dim=1)
    similarity = scale * clips @ texts.T
    there, back = (
        F.kl_div(F.log_softmax(table, dim=1), target, reduction="batchmean", log_target=True)
        for table in (similarity, similarity.T)
    )
    return (there + back) / 2


def class_scores(clips: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Probabilities float32 [B, K]: the mean over prompts of softmax(scale · similarity).

    ``clips`` float32 [B, D] and ``texts`` [P, K, D], of unit length.
    """
    import torch

    similarity = scale * torch.einsum("bd,pkd->bpk", clips, texts)
    return similarity.softmax(-1).mean(1)
