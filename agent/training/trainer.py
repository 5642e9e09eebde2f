"""Training and evaluating the head on rows of features (paper eq. 11; NOTES decision 7).

A pure computation: no clock, socket or disk. The same inputs give the same bytes on one machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...fedproto.head import HeadSpec, Params
from ...fedproto.records import Evaluation, TrainSettings
from ...runtime.backends.ort_cpu import OrtSession, as_value
from ...runtime.session import open_session
from .graph import MOMENTS, NEXT, adam_scalars, forward_graph, training_step_graph
from .table import FeatureTable
from .writer import DType

EVALUATION_BATCH = 1024  # rows
SUFFIXES = ("", *MOMENTS)


@dataclass(frozen=True, eq=False)
class Anchor:
    """(strength/2)·‖w − centre‖² added to the loss: FedProx's term, and FedDyn's once its square is completed."""

    strength: float
    centre: Mapping[str, npt.NDArray[np.floating[Any]]]  # by the head's tensors


@dataclass(frozen=True, eq=False)
class Trained:
    params: Params
    loss: float  # mean over the last epoch's batches, weighted by rows, nats
    steps: int


def shuffle_seed(run_seed: int, round_number: int, silo: str) -> int:
    """The seed of a silo's shuffles in one round, the same in a real run and in a simulation."""
    text = f"{run_seed}/{round_number}/{silo}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


class HeadTrainer:
    """The graphs of one head, opened once and used for many rounds.

    ``dtype`` float64 is for comparisons; parameters enter and leave as float32 in either case
    unless ``train`` is given float64 arrays.
    """

    def __init__(self, spec: HeadSpec, *, threads: int | None = None, dtype: DType = "float32") -> None:
        self.spec = spec
        self._dtype: DType = dtype
        self._threads = threads
        self._forward = open_session(forward_graph(spec, dtype=dtype), threads=threads)
        self._steps: dict[tuple[bool, bool], OrtSession] = {}  # by (proximal, balanced)

    def train(
        self, params: Params, table: FeatureTable, settings: TrainSettings, *, seed: int, anchor: Anchor | None = None
    ) -> Trained:
        """Run ``settings.epochs`` over ``table`` from ``params``; Adam's moments start at zero.

        Rows are shuffled anew each epoch by NumPy's PCG64 of ``seed``; the last batch may be smaller.
        ``settings.learning_rate`` is used as it is: ``local_round.round_settings`` applies the decay. Raises
        DataError (``diverged``).
        """
        session = self._step_session(proximal=anchor is not None, balanced=settings.class_balanced)
        fixed = _fixed_inputs(anchor)
        if settings.class_balanced:
            fixed["class_weight"] = class_weights(table.y, self.spec.outputs)
        loop = _StepLoop(session, self.spec, params, self._dtype, fixed)
        random = np.random.Generator(np.random.PCG64(seed))
        features = table.x.astype(self._dtype, copy=False)
        loss = math.nan
        for _ in range(settings.epochs):
            order = random.permutation(len(table))
            total = 0.0
            for start in range(0, len(order), settings.batch_size):
                rows = order[start : start + settings.batch_size]
                total += len(rows) * loop.step(features[rows], table.y[rows], settings)
            loss = total / max(len(order), 1)
        trained = Trained(loop.params(), loss, loop.steps)
        if not all(np.isfinite(tensor).all() for tensor in trained.params.values()):
            raise DataError(
                f"training diverged: parameters are not finite after {trained.steps} steps",
                fix="lower the learning rate, or look for features that are far out of range",
                code="diverged",
            )
        return trained

    def logits(self, params: Params, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Class scores [N, classes] of ``x`` [N, D]."""
        typed = {name: tensor.astype(self._dtype, copy=False) for name, tensor in params.items()}
        parts = [np.empty((0, self.spec.outputs), self._dtype)]
        for start in range(0, len(x), EVALUATION_BATCH):
            batch = x[start : start + EVALUATION_BATCH].astype(self._dtype, copy=False)
            parts.append(self._forward.run({"x": batch, **typed})["logits"])
        return np.concatenate(parts)

    def evaluate(self, params: Params, table: FeatureTable) -> Evaluation:
        """Mean cross-entropy and top-1 hits over ``table``; loss is NaN for an empty one."""
        log_probability = log_softmax(self.logits(params, table.x))
        hits = int((log_probability.argmax(axis=1) == table.y).sum())
        picked = log_probability[np.arange(len(table)), table.y]
        loss = float(-picked.mean()) if len(table) else math.nan
        return Evaluation(loss=loss, correct=hits, count=len(table))

    def _step_session(self, *, proximal: bool, balanced: bool) -> OrtSession:
        kind = (proximal, balanced)
        if kind not in self._steps:
            graph = training_step_graph(self.spec, proximal=proximal, balanced=balanced, dtype=self._dtype)
            self._steps[kind] = open_session(graph, threads=self._threads, spin=True)
        return self._steps[kind]


def class_weights(y: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """N / (K·n_c) for each of the K classes that ``y`` holds, 0 for the others: [classes]."""
    counts = np.bincount(y, minlength=classes)
    present = counts > 0
    return np.where(present, len(y) / (max(int(present.sum()), 1) * np.maximum(counts, 1)), 0.0)


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Log-probabilities of ``logits`` [N, classes], in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


class _StepLoop:
    """Two sets of buffers that take turns as a step's input and output: nothing is copied between steps."""

    def __init__(
        self, session: OrtSession, spec: HeadSpec, params: Params, dtype: DType, fixed: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        self._session = session
        self._dtype = dtype
        self._names = list(spec.shapes)
        self.steps = 0
        zeros = {name: np.zeros(shape, dtype) for name, shape in spec.shapes.items()}
        start = {name: params[name].astype(dtype) for name in self._names}
        first = {
            name + suffix: as_value(zeros[name] if suffix else start[name])
            for name in self._names
            for suffix in SUFFIXES
        }
        second = {name + suffix: as_value(zeros[name]) for name in self._names for suffix in SUFFIXES}
        self._buffers = (first, second)
        self._loss = as_value(np.zeros((), dtype))
        self._fixed = {name: as_value(array.astype(dtype)) for name, array in fixed.items()}
        self._bindings = (self._bind(first, second), self._bind(second, first))

    def _bind(self, source: dict[str, Any], target: dict[str, Any]) -> Any:
        binding = self._session.bind()
        for name, value in {**source, **self._fixed}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in target.items():
            binding.bind_ortvalue_output(name + NEXT, value)
        binding.bind_ortvalue_output("loss", self._loss)
        return binding

    def step(self, x: npt.NDArray[Any], y: npt.NDArray[np.int64], settings: TrainSettings) -> float:
        """One Adam step; the batch's loss before it."""
        binding = self._bindings[self.steps % 2]
        time = self.steps + 1
        # onnxruntime does not keep these arrays alive: they must outlive run_bound.
        feeds = {"x": np.ascontiguousarray(x), "y": np.ascontiguousarray(y)}
        feeds |= {name: np.asarray(value, self._dtype) for name, value in adam_scalars(settings, time).items()}
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        self._session.run_bound(binding)
        self.steps = time
        return float(self._loss.numpy())

    def params(self) -> Params:
        current = self._buffers[self.steps % 2]
        wanted = np.float64 if self._dtype == "float64" else np.float32
        return {name: np.array(current[name].numpy(), dtype=wanted) for name in self._names}


def _fixed_inputs(anchor: Anchor | None) -> dict[str, npt.NDArray[Any]]:
    """The step graph's inputs that stay the same over the steps."""
    if anchor is None:
        return {}
    return {"mu": np.asarray(anchor.strength), **{f"{name}.anchor": value for name, value in anchor.centre.items()}}
