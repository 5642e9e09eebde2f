"""Training and evaluating the head on rows of features (paper eq. 11; docs/paper.md, reading 7).

A pure computation: no clock, socket or disk. The same inputs give the same bytes on one machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...base.process import usable_cores
from ...fedproto.head import HeadSpec, Params, TensorLayout, all_finite, initial_params
from ...fedproto.onnx_builder import DType
from ...fedproto.records import Evaluation, TrainSettings
from ...runtime.backends.onnxruntime_cpu import open_session
from .dataset import FeatureTable
from .graph import forward_graph, gradient_graph, weight_gradient_graph
from .private import UNPROTECTED, Protection, SampleNoise, Sampling, fresh_generator, poisson_batch
from .steps import Rows, StepConfig, StepSessions, TrainingSteps

EVALUATION_BATCH = 1024  # rows
EVALUATION_VALUES = 1 << 25  # of all layers over a batch: 128 MiB of float32


@dataclass(frozen=True, eq=False)
class Anchor:
    """The proximal term (strength/2)·‖w − centre‖² that is added to the loss (``fedprox``, ``feddyn``)."""

    strength: float
    centre: Mapping[str, npt.NDArray[np.floating[Any]]]  # by the head's tensors


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of a training."""

    params: Params
    loss: float  # mean over the last epoch's batches, weighted by rows, nats
    steps: int


def shuffle_seed(run_seed: int, round_number: int, silo: str) -> int:
    """Return the seed of a silo's shuffles in one round, the same in a real run and in a simulation."""
    text = f"{run_seed}/{round_number}/{silo}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


class Trainer(Protocol):
    """Training and scoring of one head: ``HeadTrainer``, or ``own_head.OwnHeadTrainer`` in simulations."""

    @property
    def spec(self) -> TensorLayout:
        """Names and shapes of the parameters."""

    def first_params(self, seed: int) -> Params:
        """Return the parameters that a run of ``seed`` starts from."""

    def train(
        self,
        params: Params,
        table: FeatureTable,
        settings: TrainSettings,
        *,
        seed: int,
        anchor: Anchor | None = None,
        protection: Protection = UNPROTECTED,
    ) -> Trained:
        """See ``HeadTrainer``."""

    def logits_by_batch(self, params: Params, x: npt.NDArray[np.float32]) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """See ``HeadTrainer``."""


class Steps(Protocol):
    """Parameters that an optimiser changes step by step."""

    steps: int  # made so far

    def run(
        self, table: FeatureTable, batches: Sequence[Rows], settings: TrainSettings, drawn: Sequence[int] = ()
    ) -> float:
        """Make a step on each batch of ``table``'s rows; returns the sum of all rows' losses before the steps."""

    def params(self) -> Params:
        """Return a copy of the parameters."""


class HeadTrainer:
    """The graphs of one head, opened once and used for many rounds.

    ``dtype`` float64 is for comparisons; parameters enter and leave as float32 in either case
    unless ``train`` is given float64 arrays.
    """

    def __init__(self, spec: HeadSpec, *, threads: int | None = None, dtype: DType = "float32") -> None:
        self.spec = spec
        self._dtype: DType = dtype
        self._threads = threads or usable_cores()
        self._forward = open_session(forward_graph(spec, dtype=dtype), threads=threads)
        self._steps: dict[bool, StepSessions] = {}  # by whether classes are balanced

    def train(
        self,
        params: Params,
        table: FeatureTable,
        settings: TrainSettings,
        *,
        seed: int,
        anchor: Anchor | None = None,
        protection: Protection = UNPROTECTED,
    ) -> Trained:
        """Run ``settings.epochs`` over ``table`` from ``params``; Adam's moments start at zero.

        Rows are shuffled again in each epoch by NumPy's PCG64 of ``seed``; the last batch may be smaller.
        With ``protection`` of mode ``record-dp`` the batches are drawn as in ``private``, and ``seed`` has no
        effect; the result follows from noisy gradients alone, and is ``params`` where it would not be finite: an error
        would be an answer that no privacy is spent for.
        ``settings.learning_rate`` is used as it is: ``federated.round_settings`` applies the decay.
        Raises DataError (``diverged``; ``class_balanced`` where record-dp would weight rows by the others' classes).
        """
        noise = _sample_noise(protection, len(table), settings)
        config = StepConfig(
            class_weights(table.y, self.spec.outputs) if settings.class_balanced else None,
            anchor.strength if anchor else 0.0,
            anchor.centre if anchor else None,
            noise,
        )
        sessions = self._step_sessions(balanced=settings.class_balanced)
        training = TrainingSteps(sessions, self.spec, params, self._dtype, config)
        random = fresh_generator() if noise else np.random.Generator(np.random.PCG64(seed))
        with training.running():
            trained = run_epochs(training, table, settings, random, noise)
        if noise is None:
            check_finite(trained)
        elif not _is_finite(trained.params):  # the loss is not covered by epsilon, and every training is answered
            return replace(trained, params=dict(params))
        return trained

    def first_params(self, seed: int) -> Params:
        """See ``fedproto.head.initial_params``."""
        return initial_params(self.spec, seed)

    def logits(self, params: Params, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Return the class scores [N, classes] of ``x`` [N, D]."""
        parts = [np.empty((0, self.spec.outputs), self._dtype)]
        return np.concatenate([*parts, *(scores for _, scores in self.logits_by_batch(params, x))])

    def logits_by_batch(self, params: Params, x: npt.NDArray[np.float32]) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """Yield some rows of ``x`` [N, D] and their class scores, then the next: with many classes all are too many."""
        typed = {name: tensor.astype(self._dtype, copy=False) for name, tensor in params.items()}
        size = max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // sum(self.spec.widths)))
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            batch = x[rows].astype(self._dtype, copy=False)
            yield rows, self._forward.run({"x": batch, **typed})["logits"]

    def _step_sessions(self, *, balanced: bool) -> StepSessions:
        if balanced not in self._steps:
            gradients = gradient_graph(self.spec, balanced=balanced, dtype=self._dtype)
            self._steps[balanced] = StepSessions(
                open_session(gradients.model, threads=self._threads, spin=True),
                gradients.layer_inputs,
                open_session(weight_gradient_graph(dtype=self._dtype), threads=1),
                self._threads,
            )
        return self._steps[balanced]


def run_epochs(
    training: Steps,
    table: FeatureTable,
    settings: TrainSettings,
    random: np.random.Generator,
    noise: SampleNoise | None,
) -> Trained:
    """Run ``settings.epochs`` over ``table``, whose rows ``random`` shuffles again in each epoch."""
    loss = math.nan
    for _ in range(settings.epochs):
        batches, drawn = _batches(random, len(table), settings, noise)
        loss = training.run(table, batches, settings, drawn) / max(sum(map(len, batches)), 1)
    return Trained(training.params(), loss, training.steps)


def check_finite(trained: Trained) -> None:
    """Raise DataError (``diverged``) when the loss or a parameter is not finite."""
    if not _is_finite(trained.params) or not math.isfinite(trained.loss):
        raise DataError(
            f"training diverged: loss or parameters are not finite after {trained.steps} steps",
            fix="lower the learning rate, or look for features that are far out of range",
            code="diverged",
        )


def _is_finite(params: Params) -> bool:
    return all(all_finite(tensor) for tensor in params.values())


def evaluate(trainer: Trainer, params: Params, table: FeatureTable) -> Evaluation:
    """Return mean cross-entropy and correct top-1 predictions over ``table``; the loss is NaN for an empty one."""
    losses, correct = np.empty(len(table)), 0
    for rows, scores in trainer.logits_by_batch(params, table.x):
        log_probability, y = log_softmax(scores), table.y[rows]
        losses[rows] = -log_probability[np.arange(len(y)), y]
        correct += int((log_probability.argmax(axis=1) == y).sum())
    return Evaluation(loss=float(losses.mean()) if len(table) else math.nan, correct=correct, count=len(table))


def _sample_noise(protection: Protection, rows: int, settings: TrainSettings) -> SampleNoise | None:
    if protection.mode != "record-dp" or rows == 0:
        return None
    if settings.class_balanced:
        raise DataError(
            "record-dp cannot train with class_balanced: a clip's weight would depend on the classes of the others",
            fix="set run.train.class_balanced = false, or another policy.privacy",
            code="class_balanced",
        )
    return SampleNoise(protection.clip_norm, protection.noise, Sampling.of(rows, settings))


def _batches(
    random: np.random.Generator, rows: int, settings: TrainSettings, noise: SampleNoise | None
) -> tuple[list[Rows], list[int]]:
    """Return one epoch's batches; with noise also how many rows of each count."""
    size = settings.batch_size
    if noise is None:
        order = random.permutation(rows)
        return [order[start : start + size] for start in range(0, rows, size)], []
    steps = noise.sampling.steps // settings.epochs
    pairs = [poisson_batch(random, rows, noise.sampling.rate) for _ in range(steps)]
    return [batch for batch, _ in pairs], [drawn for _, drawn in pairs]


def class_weights(y: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """Return N / (K·n_c) for each of the K classes in ``y``, 0 for the others: [classes]."""
    counts = np.bincount(y, minlength=classes)
    present = counts > 0
    return np.where(present, len(y) / (max(int(present.sum()), 1) * np.maximum(counts, 1)), 0.0)


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the log-probabilities of ``logits`` [N, classes], in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
