"""A head that its user hands in, with forward pass and gradients in NumPy, trained by the loop of the built-in heads.

For simulation and training in one process: the daemons know the heads that a ``HeadSpec`` describes and no other,
because a run's settings must tell every silo what it trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...fedproto.bounds import MAX_PARAMETERS
from ...fedproto.head import HeadSpec, Params, check_params, split_params
from ...fedproto.records import TrainSettings
from .adam import AdamState, adam_scalars, adam_step
from .dataset import FeatureTable
from .private import UNPROTECTED, Protection
from .steps import Rows
from .trainer import (
    EVALUATION_BATCH,
    Anchor,
    HeadTrainer,
    Trained,
    Trainer,
    check_finite,
    class_weights,
    log_softmax,
    run_epochs,
)

Array = npt.NDArray[Any]
Gradients = Callable[[Array], Mapping[str, Array]]
BAD_HEAD = "bad_own_head"
CHECKED_ROWS = 5
TOLERANCE = 0.02  # of a slope, between gradients and difference quotient
# The difference quotient's step, and the rounding error that is not the gradients': of heads that compute in float64
# when they are given float64, and of others.
EXACT, ROUNDED = (1e-4, 1e-7), (1e-2, 3e-5)


class Head(Protocol):
    """A classifier of feature rows, defined by its user.

    Attributes:
        shapes: Shapes of the parameters by name, in a fixed order: ``{"weight": (classes, inputs)}``.

    A head may also have ``initial(random)``, which draws the initial parameters from a ``numpy.random.Generator``;
    without it tensors of two and more dimensions are drawn as PyTorch's ``Linear`` draws a weight, and others are 0.
    Its gradients are compared with a difference quotient once, unless it has ``exact_gradients = False``.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the parameters by name."""

    def forward(self, params: Params, x: Array) -> tuple[Array, Gradients]:
        """Score a batch.

        Args:
            params: The parameters by name, not to be changed.
            x: Feature rows, [batch, inputs].

        Returns:
            The class scores (logits, before softmax) [batch, classes], and a function that takes the gradient of
            the loss with respect to the scores [batch, classes] and returns that of every parameter by name.
        """


@dataclass(frozen=True, eq=False)
class OwnHead:
    """A ``Head`` whose shapes, scores and gradients have been checked."""

    head: Head
    inputs: int
    outputs: int  # classes
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def open(cls, given: Head | Callable[[int, int], Head], inputs: int, outputs: int) -> OwnHead:
        """Check a head, or the one that a class or function makes of the numbers of inputs and classes.

        Raises DataError (``bad_own_head``, ``model_too_large``).
        """
        is_head = hasattr(given, "forward") and not isinstance(given, type)
        head: Any = given if is_head else given(inputs, outputs)  # type: ignore[operator]
        if not callable(getattr(head, "forward", None)) or not isinstance(getattr(head, "shapes", None), Mapping):
            raise _bad_head(head, "it needs a mapping 'shapes' and a method forward(params, x)")
        shapes = {str(name): _shape(head, name, shape) for name, shape in head.shapes.items()}
        if not shapes or any(size < 1 for shape in shapes.values() for size in shape):
            raise _bad_head(head, f"shapes are {shapes}, expected one or more tensors of sizes of 1 or more")
        own = cls(head, inputs, outputs, shapes)
        if own.parameters > MAX_PARAMETERS:
            raise DataError(
                f"a head of {own.parameters:,} parameters, expected at most {MAX_PARAMETERS:,}",
                fix="choose a smaller head",
                code="model_too_large",
            )
        _check_gradients(own)
        return own

    @property
    def name(self) -> str:
        """Name of the head's class."""
        return type(self.head).__name__

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def first_params(self, seed: int) -> Params:
        """Return initial parameters from NumPy's PCG64 of ``seed``. Raises DataError for others than ``shapes``."""
        random = np.random.Generator(np.random.PCG64(seed))
        draw = getattr(self.head, "initial", None)
        if draw is None:
            return {name: np.array(_drawn(random, shape), np.float32) for name, shape in self.shapes.items()}
        given = draw(random)
        if not isinstance(given, Mapping):
            raise _bad_head(self.head, f"initial returned {type(given).__name__}, expected arrays by name")
        try:
            params = {name: np.array(given[name], np.float32) for name in self.shapes if name in given}
            check_params(self, params, whose="what initial returned")
        except (DataError, TypeError, ValueError) as error:
            fix = "return {name: array} with the names of shapes, each of its shape and with finite values"
            raise _bad_head(self.head, str(error), fix=fix) from error
        return params

    def scores(self, params: Params, x: Array) -> tuple[Array, Gradients]:
        """Call ``forward`` and check the shape of the scores."""
        returned: Any = self.head.forward(params, x)
        if not isinstance(returned, tuple | list) or len(returned) != 2 or not callable(returned[1]):
            raise _bad_head(
                self.head,
                f"forward returned {_kind(returned)}, expected the scores and a function that returns the gradients",
                fix="return scores, lambda gradient: {name: gradient of that parameter}",
            )
        scores, backward = returned
        expected = (len(x), self.outputs)
        if np.shape(scores) != expected:
            raise _bad_head(self.head, f"forward returned scores of shape {np.shape(scores)}, expected {expected}")
        found = np.asarray(scores)
        if found.dtype.kind != "f":
            raise _bad_head(self.head, f"forward returned scores of {found.dtype}, expected floating point")
        return found, backward

    def fill_gradients(self, gradients: Mapping[str, Array], out: Array) -> None:
        """Write the gradients of all tensors to ``out`` [parameters]; DataError for others than ``shapes``."""
        if not isinstance(gradients, Mapping):
            raise _bad_head(self.head, f"its gradients are {_kind(gradients)}, expected arrays by name")
        found = {name: np.shape(gradient) for name, gradient in gradients.items()}
        if found != self.shapes:
            raise _bad_head(self.head, f"its gradients have the shapes {found}, expected {self.shapes}")
        for name, part in split_params(self, out).items():
            part[...] = gradients[name]


class OwnHeadTrainer:
    """Trains one ``OwnHead`` as ``HeadTrainer`` trains a built-in one: same shuffles, loss and Adam."""

    def __init__(self, head: OwnHead) -> None:
        self._head = head

    @property
    def spec(self) -> OwnHead:
        """Names and shapes of the parameters."""
        return self._head

    def first_params(self, seed: int) -> Params:
        """See ``OwnHead``."""
        return self._head.first_params(seed)

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
        """See ``HeadTrainer``. Raises DataError also for ``record-dp``, which needs every row's own gradient."""
        if protection.mode == "record-dp":
            raise DataError(
                "record-dp cannot train a head that is handed in",
                fix="use a head of fedproto.head, or another policy.privacy",
                code=BAD_HEAD,
            )
        weights = class_weights(table.y, self._head.outputs) if settings.class_balanced else None
        training = OwnHeadSteps(self._head, params, weights, anchor)
        trained = run_epochs(training, table, settings, np.random.Generator(np.random.PCG64(seed)), None)
        check_finite(trained)
        return trained

    def logits_by_batch(self, params: Params, x: npt.NDArray[np.float32]) -> Iterator[tuple[slice, Array]]:
        """See ``HeadTrainer``."""
        for start in range(0, len(x), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            yield rows, self._head.scores(params, x[rows])[0]


class OwnHeadSteps:
    """Parameters of an ``OwnHead``, their moments, and one Adam step at a time."""

    def __init__(
        self, head: OwnHead, params: Params, class_weight: npt.NDArray[np.float64] | None, anchor: Anchor | None
    ) -> None:
        self.steps = 0
        self._head = head
        self._class_weight = class_weight
        self._mu = anchor.strength if anchor else 0.0
        size = head.parameters
        self._state = AdamState(
            self._flat(params),
            np.zeros(size, np.float32),
            np.zeros(size, np.float32),
            self._flat(anchor.centre) if anchor else None,
        )
        self._weights = split_params(head, self._state.weight)
        self._gradient, self._scratch = np.empty(size, np.float32), np.empty(size, np.float32)

    def run(
        self, table: FeatureTable, batches: Sequence[Rows], settings: TrainSettings, drawn: Sequence[int] = ()
    ) -> float:
        """See ``trainer.Steps``."""
        total = 0.0
        for rows in batches:
            self.steps += 1
            with np.errstate(all="ignore"):  # the trainer checks the final parameters
                scores, backward = self._head.scores(self._weights, table.x[rows])
                loss, gradient = cross_entropy(scores, table.y[rows], self._class_weight)
                self._head.fill_gradients(backward(gradient), self._gradient)
            adam_step(
                self._state, self._gradient, self._scratch, adam_scalars(settings, self.steps, "float32", self._mu)
            )
            total += len(rows) * loss
        return total

    def params(self) -> Params:
        """See ``trainer.Steps``."""
        return {name: tensor.copy() for name, tensor in self._weights.items()}

    def _flat(self, params: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        return np.concatenate([np.asarray(params[name], np.float32).ravel() for name in self._head.shapes])


def open_trainer(head: HeadSpec | OwnHead, *, threads: int | None = None) -> Trainer:
    """Open the trainer of a built-in head or one that is handed in."""
    return HeadTrainer(head, threads=threads) if isinstance(head, HeadSpec) else OwnHeadTrainer(head)


def cross_entropy(
    scores: Array, y: npt.NDArray[np.int64], class_weight: npt.NDArray[np.float64] | None
) -> tuple[float, Array]:
    """Return the mean cross-entropy of ``scores`` [batch, classes] in nats, and its gradient with respect to them.

    With ``class_weight`` [classes] a row is weighted by its class, and the mean is over the batch's weights.
    """
    log_probability, rows = log_softmax(scores), np.arange(len(y))
    weights = np.ones(len(y)) if class_weight is None else class_weight[y]
    shares = weights / weights.sum()
    gradient = np.exp(log_probability)
    gradient[rows, y] -= 1.0
    gradient *= shares[:, None]
    return -float((log_probability[rows, y] * shares).sum()), gradient.astype(scores.dtype)


def _check_gradients(own: OwnHead) -> None:
    """Compare the gradients with a difference quotient in one random direction, on random rows.

    Raises DataError (``bad_own_head``) when they disagree, unless the head says that its gradients are not exact.
    """
    random = np.random.Generator(np.random.PCG64(1))
    x, y = random.normal(size=(CHECKED_ROWS, own.inputs)), random.integers(0, own.outputs, CHECKED_ROWS)
    start = np.concatenate([tensor.ravel() for tensor in own.first_params(1).values()]).astype(np.float64)
    direction = random.normal(size=start.size)
    direction /= np.linalg.norm(direction)

    def at(way: float) -> tuple[Array, Gradients]:
        return own.scores(split_params(own, start + way * direction), x)  # type: ignore[arg-type]

    scores, backward = at(0.0)
    gradient = np.empty_like(start)
    own.fill_gradients(backward(cross_entropy(scores, y, None)[1]), gradient)
    if not getattr(own.head, "exact_gradients", True):
        return
    step, rounding = EXACT if scores.dtype == np.float64 else ROUNDED
    losses = [cross_entropy(at(way)[0], y, None)[0] for way in (step, -step)]
    measured, returned = (losses[0] - losses[1]) / (2 * step), float(gradient @ direction)
    if not abs(measured - returned) <= TOLERANCE * max(abs(measured), abs(returned)) + rounding:
        raise _bad_head(
            own.head,
            "its scores or gradients are NaN or infinite near the initial parameters"
            if not (math.isfinite(returned) and math.isfinite(measured))
            else f"its gradients give the loss a slope of {returned:.3g} in a direction in which it has {measured:.3g}",
            fix="correct the function that forward returns; exact_gradients = False on the class skips this comparison",
        )


def _shape(head: object, name: object, shape: Any) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in shape)
    except (TypeError, ValueError) as error:
        raise _bad_head(
            head,
            f"the shape of {name!r} is {shape!r}, expected a tuple of sizes",
            fix="write (3,) for a vector",
        ) from error


def _kind(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(each).__name__ for each in value)}"
    return type(value).__name__


def _drawn(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    if len(shape) < 2:
        return np.zeros(shape, np.float32)
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return random.uniform(-bound, bound, shape)


def _bad_head(head: object, problem: str, *, fix: str = "") -> DataError:
    return DataError(
        f"head {type(head).__name__}: {problem}", fix=fix or "docs/guides/python-api.md has an example", code=BAD_HEAD
    )
