"""Knowledge distillation's loss (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), as KD uses it twice.

Jain et al. (2021, https://arxiv.org/abs/2107.12147) compress at the centre, before anything is
federated: teacher to assistant, assistant to student (the assistant of Mirzadeh et al. 2020,
https://arxiv.org/abs/1902.03393, bridges the gap in size).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
