"""Losses of the baselines: ActionCLIP's contrastive loss with its prompts, and KD's distillation loss.

ActionCLIP (Wang et al. 2021, https://arxiv.org/abs/2109.08472) treats a label as a sentence. Similarities
between all clips and all sentences of a batch are trained to be high where both share a class.

KD (Jain et al. 2021, https://arxiv.org/abs/2107.12147) distils twice at the centre (Hinton et al. 2015,
https://arxiv.org/abs/1503.02531): teacher to assistant, and assistant to student. The assistant (Mirzadeh et
al. 2020, https://arxiv.org/abs/1902.03393) bridges the gap in size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Our own, similar to the paper's: the label at the start, in the middle and at the end of a sentence, and alone.
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
    """A folder's name as words: ``ApplyLipstick`` and ``apply_lipstick`` become "apply lipstick"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label)
    return " ".join(re.split(r"[\W_]+", spaced)).strip().lower()


def class_sentences(labels: Sequence[str], prompts: Sequence[str] = PROMPTS) -> list[list[str]]:
    """Sentences [P][K]: every label in every prompt."""
    return [[prompt.format(class_words(label)) for label in labels] for prompt in prompts]


def contrastive_loss(clips: Tensor, texts: Tensor, y: Tensor, scale: Tensor, *, sharpness: float) -> Tensor:
    """Mean of KL(q ‖ p of clip to text) and KL(q ‖ p of text to clip), each averaged over its rows.

    ``clips``, ``texts``: float32 [B, D] of unit length, row i of both of class ``y[i]`` (int64 [B]);
    ``scale``: factor of the similarities before the softmax. q is softmax(sharpness · match) with match 1 where
    two rows share a class and 0 elsewhere, as in the authors' code
    (https://github.com/sallymmx/ActionCLIP); it is symmetric.
    """
    import torch.nn.functional as F

    match = (y[:, None] == y[None, :]).to(clips.dtype)
    target = F.log_softmax(sharpness * match, dim=1)
    similarity = scale * clips @ texts.T
    clip_to_text, text_to_clip = (
        F.kl_div(F.log_softmax(table, dim=1), target, reduction="batchmean", log_target=True)
        for table in (similarity, similarity.T)
    )
    return (clip_to_text + text_to_clip) / 2


def class_scores(clips: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Probabilities float32 [B, K]: the mean over prompts of softmax(scale · similarity).

    ``clips`` float32 [B, D] and ``texts`` [P, K, D], of unit length.
    """
    import torch

    similarity = scale * torch.einsum("bd,pkd->bpk", clips, texts)
    return similarity.softmax(-1).mean(1)


def distillation_loss(student: Tensor, teacher: Tensor, y: Tensor, *, temperature: float, alpha: float) -> Tensor:
    """Batch mean of (1 - alpha) CE(student, y) + alpha T² KL(softmax(teacher / T) || softmax(student / T)).

    ``student``, ``teacher``: logits float32 [B, K], the teacher's without gradient; ``y``: int64 [B].
    T² keeps the scale of the second gradient independent of T.
    """
    import torch.nn.functional as F

    hard = F.cross_entropy(student, y)
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - alpha) * hard + alpha * temperature**2 * soft
