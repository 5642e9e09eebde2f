"""Training a network on films, epoch by epoch, from wherever its checkpoint stands."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...base.progress import Progress
from .checkpoints import MOMENTS, load_checkpoint, pack_optimiser, save_checkpoint, unpack_optimiser
from .clips import Bytes, Films, Rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# A batch's loss, and how many of its clips were recognised (with the network as it was for that loss).
# What a step draws, it draws from the generator, so that a resumed epoch draws the same.
Step = Callable[[Bytes, Rows, np.random.Generator], "tuple[Tensor, int]"]


@dataclass(frozen=True)
class Fit:
    """How one network is trained."""

    epochs: int
    batch_size: int
    learning_rate: float  # the highest; rises over ``warmup`` and falls to 0 along a cosine
    weight_decay: float
    optimiser: Literal["sgd", "adamw"] = "adamw"  # SGD with momentum 0.9
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    warmup: float = 0.1  # share of the epochs


@dataclass(eq=False)
class Learned:
    """What came of it so far."""

    epochs: int = 0
    seconds: float = 0.0  # training alone: no decoding, no evaluation
    train_curve: list[float] = field(default_factory=list)  # per epoch, counted while training
    test_curve: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class TrainJob:
    """One network, what it is taught, and where it is kept."""

    net: nn.Module  # all that is trained, as one module
    step: Step
    test: Callable[[], float] | None  # accuracy on held-out clips; None: there is nothing to compare with
    fit: Fit
    films: Films
    rows: Rows  # that are trained on
    seed: tuple[int, ...]  # of the order and the crops
    file: Path
    before_epoch: Callable[[], None] = lambda: None


def learn(lesson: TrainJob, progress: Progress) -> Learned:
    """Train ``lesson.net`` in place to the end of its epochs. ``progress`` advances by one per clip.

    The checkpoint is written after every epoch, and read first. Raises DataError on one that is damaged.
    """
    optimiser = make_optimiser(lesson.net, lesson.fit)
    learned = _resume(lesson, optimiser)
    progress.advance(learned.epochs * len(lesson.rows))
    for epoch in range(learned.epochs, lesson.fit.epochs):
        lesson.before_epoch()
        lesson.net.train()
        started = time.monotonic()
        right = _learn_epoch(lesson, optimiser, epoch, progress)
        learned.seconds += time.monotonic() - started
        learned.epochs = epoch + 1
        learned.train_curve.append(right / len(lesson.rows))
        if lesson.test is not None:
            learned.test_curve.append(lesson.test())
        tensors = {**lesson.net.state_dict(), **pack_optimiser(optimiser)}
        save_checkpoint(lesson.file, tensors, vars(learned))
    lesson.net.eval()
    return learned


def make_optimiser(net: nn.Module, fit: Fit) -> torch.optim.Optimizer:
    """The optimiser of ``fit`` over all that ``net`` trains."""
    import torch

    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if fit.optimiser == "sgd":
        return torch.optim.SGD(trained, lr=fit.learning_rate, momentum=0.9, weight_decay=fit.weight_decay)
    return torch.optim.AdamW(trained, lr=fit.learning_rate, betas=fit.betas, weight_decay=fit.weight_decay)


def rate_at(fit: Fit, epoch: float) -> float:
    """The learning rate ``epoch`` epochs after the start: a linear rise, then half a cosine (Loshchilov 2017)."""
    rise = fit.warmup * fit.epochs
    if epoch < rise:
        return fit.learning_rate * epoch / rise
    return fit.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - rise) / (fit.epochs - rise)))


def batches(rows: Rows, size: int, random: np.random.Generator) -> Iterator[Rows]:
    """``rows`` shuffled, in batches; one clip left over joins the last batch (batch statistics need two)."""
    order = random.permutation(rows)
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] == 1:
        cuts.pop()
    yield from np.split(order, cuts)


def stream(*key: int) -> np.random.Generator:
    """Random numbers of their own for every seed, phase and epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key[0], spawn_key=key[1:])))


def accuracy(
    net: nn.Module, films: Films, rows: Rows, guess: Callable[[Bytes], Rows], *, batch_size: int = 64
) -> float:
    """The share of ``rows`` whose class ``guess`` names, ``net`` in evaluation mode; nan without rows."""
    import torch

    net.eval()
    right = 0
    with torch.inference_mode():
        for part in np.split(rows, range(batch_size, len(rows), batch_size)):
            right += int((guess(films.take(part, None)) == films.y[part]).sum())
    return right / len(rows) if len(rows) else math.nan


def _resume(lesson: TrainJob, optimiser: torch.optim.Optimizer) -> Learned:
    found = load_checkpoint(lesson.file)
    if found is None:
        return Learned()
    tensors, record = found
    lesson.net.load_state_dict({name: t for name, t in tensors.items() if not name.startswith(MOMENTS)})
    unpack_optimiser(optimiser, tensors)
    return Learned(**record)


def _learn_epoch(lesson: TrainJob, optimiser: torch.optim.Optimizer, epoch: int, progress: Progress) -> int:
    """One pass over the clips; how many were recognised on the way."""
    random = stream(*lesson.seed, epoch)
    right = seen = 0
    for rows in batches(lesson.rows, lesson.fit.batch_size, random):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(lesson.fit, epoch + (seen + len(rows) / 2) / len(lesson.rows))
        optimiser.zero_grad(set_to_none=True)
        loss, recognised = lesson.step(lesson.films.take(rows, random), lesson.films.y[rows], random)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        right += recognised
        seen += len(rows)
        progress.advance(len(rows))
    return right
