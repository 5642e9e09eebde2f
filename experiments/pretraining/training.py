"""The training loop that all small networks share: AdamW over a fixed number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...base.errors import InvariantError
from ...base.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_GRADIENT_NORM = 1.0  # norm to which a step's gradient is clipped


@dataclass(frozen=True)
class Optimisation:
    """Hyperparameters of the loop."""

    steps: int
    learning_rate: float  # the maximum, reached after ``warm_up``; then it falls to 0 along a cosine
    weight_decay: float
    warm_up: int  # steps
    betas: tuple[float, float] = (0.9, 0.98)  # of AdamW


def minimise(
    name: str,
    parameters: Iterable[nn.Parameter],
    loss_at: Callable[[int], Tensor],
    optimisation: Optimisation,
    progress: Progress | None = None,
) -> None:
    """Change ``parameters`` to lower ``loss_at(step)``, the loss of a batch drawn for that step (from 0).

    ``progress`` advances by one per step. Raises InvariantError when the loss of network ``name`` is no longer
    finite: such a training never recovers.
    """
    import torch

    trained = list(parameters)
    optimiser = torch.optim.AdamW(
        trained,
        lr=optimisation.learning_rate,
        weight_decay=optimisation.weight_decay,
        betas=optimisation.betas,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_cosine(optimisation.warm_up, optimisation.steps))
    for step in range(optimisation.steps):
        loss = loss_at(step)
        if not bool(loss.isfinite()):
            raise InvariantError(f"the training of '{name}' gave a loss of {loss.item()}, expected a finite one")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress.advance()


def warm_cosine(warm_up: int, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: a linear rise over ``warm_up`` steps, then half a cosine down to 0."""

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return float(0.5 * (1 + np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up))))

    return rate
