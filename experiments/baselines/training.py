"""Training loop of the baselines: epoch by epoch over clips, resuming from a checkpoint."""

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
from .clips import Bytes, ClipSet, Rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Loss of a batch and number of its correct predictions. All randomness of a step comes from the generator, so
# that a resumed epoch is the same.
Step = Callable[[Bytes, Rows, np.random.Generator], "tuple[Tensor, int]"]


@dataclass(frozen=True)
class Fit:
    """Hyperparameters of one network's training."""

    epochs: int
    batch_size: int
    learning_rate: float  # the maximum, reached after ``warmup``; then it falls to 0 along a cosine
    weight_decay: float
    optimiser: Literal["sgd", "adamw"] = "adamw"  # SGD with momentum 0.9
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    warmup: float = 0.1  # share of the epochs


@dataclass(eq=False)
class TrainingHistory:
    """Progress of a training so far; a checkpoint and the result hold it as JSON."""

    epochs: int = 0
    seconds: float = 0.0  # of training, without decoding and evaluation
    train_curve: list[float] = field(default_factory=list)  # accuracy per epoch, counted while training
    test_curve: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class TrainJob:
    """A network, its training step and data, and the file of its checkpoint."""

    net: nn.Module  # all trained parameters, as one module
    step: Step
    test: Callable[[], float] | None  # accuracy on held-out clips; None where their classes differ
    fit: Fit
    clips: ClipSet
    rows: Rows  # of the training clips
    seed: tuple[int, ...]  # of the order and the crops
    file: Path
    before_epoch: Callable[[], None] = lambda: None


def train(job: TrainJob, progress: Progress) -> TrainingHistory:
    """Train ``job.net`` in place for all its epochs. ``progress`` advances by one per clip.

    The checkpoint is read first and written after every epoch. Raises DataError when it is damaged.
    """
    optimiser = make_optimiser(job.net, job.fit)
    history = _resume(job, optimiser)
    progress.advance(history.epochs * len(job.rows))
    for epoch in range(history.epochs, job.fit.epochs):
        job.before_epoch()
        job.net.train()
        started = time.monotonic()
        correct = _train_epoch(job, optimiser, epoch, progress)
        history.seconds += time.monotonic() - started
        history.epochs = epoch + 1
        history.train_curve.append(correct / len(job.rows))
        if job.test is not None:
            history.test_curve.append(job.test())
        tensors = {**job.net.state_dict(), **pack_optimiser(optimiser)}
        save_checkpoint(job.file, tensors, vars(history))
    job.net.eval()
    return history


def make_optimiser(net: nn.Module, fit: Fit) -> torch.optim.Optimizer:
    """The optimiser of ``fit`` over the trainable parameters of ``net``."""
    import torch

    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if fit.optimiser == "sgd":
        return torch.optim.SGD(trained, lr=fit.learning_rate, momentum=0.9, weight_decay=fit.weight_decay)
    return torch.optim.AdamW(trained, lr=fit.learning_rate, betas=fit.betas, weight_decay=fit.weight_decay)


def rate_at(fit: Fit, epoch: float) -> float:
    """Learning rate after ``epoch`` epochs: a linear rise, then half a cosine (Loshchilov 2017)."""
    rise = fit.warmup * fit.epochs
    if epoch < rise:
        return fit.learning_rate * epoch / rise
    return fit.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch - rise) / (fit.epochs - rise)))


def batches(rows: Rows, size: int, random: np.random.Generator) -> Iterator[Rows]:
    """Shuffled batches of ``rows``; a single remaining clip joins the last batch (batch statistics need two)."""
    order = random.permutation(rows)
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] == 1:
        cuts.pop()
    yield from np.split(order, cuts)


def stream(*key: int) -> np.random.Generator:
    """An independent random generator for every seed, phase and epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key[0], spawn_key=key[1:])))


def accuracy(
    net: nn.Module, clips: ClipSet, rows: Rows, predict: Callable[[Bytes], Rows], *, batch_size: int = 64
) -> float:
    """Share of ``rows`` whose class is predicted correctly, ``net`` in evaluation mode; nan without rows."""
    import torch

    net.eval()
    correct = 0
    with torch.inference_mode():
        for part in np.split(rows, range(batch_size, len(rows), batch_size)):
            correct += int((predict(clips.take(part, None)) == clips.y[part]).sum())
    return correct / len(rows) if len(rows) else math.nan


def _resume(job: TrainJob, optimiser: torch.optim.Optimizer) -> TrainingHistory:
    found = load_checkpoint(job.file)
    if found is None:
        return TrainingHistory()
    tensors, record = found
    job.net.load_state_dict({name: t for name, t in tensors.items() if not name.startswith(MOMENTS)})
    unpack_optimiser(optimiser, tensors)
    return TrainingHistory(**record)


def _train_epoch(job: TrainJob, optimiser: torch.optim.Optimizer, epoch: int, progress: Progress) -> int:
    """One pass over the clips; returns the number of correct predictions while training."""
    random = stream(*job.seed, epoch)
    correct = seen = 0
    for rows in batches(job.rows, job.fit.batch_size, random):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(job.fit, epoch + (seen + len(rows) / 2) / len(job.rows))
        optimiser.zero_grad(set_to_none=True)
        loss, correct_in_batch = job.step(job.clips.take(rows, random), job.clips.y[rows], random)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        correct += correct_in_batch
        seen += len(rows)
        progress.advance(len(rows))
    return correct
