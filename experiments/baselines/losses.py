"""ActionCLIP's loss and prompts (Wang et al. 2021, https://arxiv.org/abs/2109.08472).

A label is not a number but a sentence. A batch's clips and its labels' sentences are compared each with
each, and the similarities are to match the table of which clip and which sentence share a class.

Knowledge distillation's loss (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), as KD uses it twice.

Jain et al. (2021, https://arxiv.org/abs/2107.12147) compress at the centre, before anything is
federated: teacher to assistant, assistant to student (the assistant of Mirzadeh et al. 2020,
https://arxiv.org/abs/1902.03393, bridges the gap in size).
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


def distillation_loss(student: Tensor, teacher: Tensor, y: Tensor, *, temperature: float, alpha: float) -> Tensor:
    """(1 - alpha) CE(student, y) + alpha T² KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.

    ``student``, ``teacher``: logits float32 [B, K], the teacher's without gradient; ``y``: int64 [B].
    T² keeps the size of the second gradient when T changes.
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
