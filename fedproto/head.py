"""The trainable head: its tensors, their order, and their initial values.

One ``HeadSpec`` determines the update's layout on the wire, the training-step graph on the silo and
the initial model on the coordinator.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from .bounds import MAX_BLOCKS, MAX_LAYERS, MAX_PARAMETERS, MAX_WIDTH

# Fields that are left out of settings and model files at their default.
_LEFT_OUT_AT_DEFAULT = {"blocks": (), "standardise": False, "common": 256, "start": "uniform"}
_RGCF = ("v", "t")  # the two modalities, as the gates' formula names them
DRAWN_AT_ONCE = 1 << 18  # initial values
Params = dict[str, npt.NDArray[np.float32]]
Number = TypeVar("Number", bound=np.generic)


class TensorLayout(Protocol):
    """Names and shapes of a model's tensors: all that encoding, checking and averaging need to know of a head."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes by name, in wire order."""

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""


class HeadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The trained model: a perceptron with ReLU between its layers (paper section 4: 512 and 256).

    ``mlp`` takes the features as they are (the modalities concatenated, paper eq. 8). ``rgcf`` first fuses two
    modalities by residual gated cross fusion (paper section 6.5; its supplement is not public, so this is
    our reading): v and t are projected to ``common`` dimensions each, and

        v' = v + sigmoid(W_g [v; t]) * W_t t        t' = t + sigmoid(U_g [t; v]) * U_v v

    enter the perceptron as [v'; t']. Every linear map has a bias. ``hidden=()`` is softmax regression.
    ``standardise`` replaces a block b by (b - mean) / sqrt(variance + 1e-12), mean and variance over the block's
    values in that row, in training and in inference. ``start`` zero is for softmax regression: drawn weights would stay
    wherever few clips move them.
    Raises DataError: ``bad_head`` when blocks, kind and common do not fit each other, or a width or the number of
    layers is out of bounds; ``model_too_large`` for more parameters than a silo trains (``bounds``).
    """

    inputs: int
    outputs: int  # classes
    hidden: tuple[int, ...] = (512, 256)
    kind: Literal["mlp", "rgcf"] = "mlp"
    blocks: tuple[int, ...] = ()  # widths of the modalities in a row, in order; empty: the row is one
    standardise: bool = False  # every block of every row to mean 0 and standard deviation 1
    common: int = 256  # rgcf only: width that both modalities are projected to
    start: Literal["uniform", "zero"] = "uniform"  # initial values: as of PyTorch's Linear, or 0

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise DataError("; ".join(problems), fix="blocks = [width of BLIP, width of the CNN]", code="bad_head")
        if self.parameters > MAX_PARAMETERS:
            raise DataError(
                f"a head of {self.parameters:,} parameters, expected at most {MAX_PARAMETERS:,}",
                fix="choose smaller hidden widths",
                code="model_too_large",
            )

    def _problems(self) -> list[str]:
        """Return what is wrong with the fields; looked at before anything is computed from them."""
        if len(self.hidden) > MAX_LAYERS or len(self.blocks) > MAX_BLOCKS:
            return [f"expected at most {MAX_LAYERS} hidden layers and {MAX_BLOCKS} blocks"]
        widths = (self.inputs, self.outputs, *self.hidden, *self.blocks)
        if not all(
            1 <= width <= MAX_WIDTH for width in widths
        ):  # a message shows none of them: one may have 4,000 digits
            return [f"inputs, outputs, hidden and blocks: expected widths of 1 to {MAX_WIDTH:,}"]
        problems = []
        if self.blocks and sum(self.blocks) != self.inputs:
            problems.append(f"blocks {list(self.blocks)}: expected widths that add up to inputs = {self.inputs}")
        if self.kind == "rgcf" and len(self.blocks) != 2:
            problems.append(f"kind 'rgcf' fuses exactly two blocks, there are {len(self.blocks)}")
        if not 1 <= self.common <= MAX_WIDTH:
            problems.append(f"common: expected 1 or more, at most {MAX_WIDTH:,}")
        if self.start == "zero" and (self.hidden or self.kind != "mlp"):
            problems.append("start 'zero': expected hidden = [] and kind 'mlp'; hidden layers would never leave 0")
        return problems

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the perceptron: its input, its hidden layers, the classes."""
        first = 2 * self.common if self.kind == "rgcf" else self.inputs
        return (first, *self.hidden, self.outputs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors by name, in wire order: ``0.weight`` [out, in], ``0.bias`` [out], ``1.weight`` …

        With rgcf, before them: for v and then t ``v.weight`` [common, block], ``v.gate.weight``
        [common, 2 * common] (W_g, over [v; t]) and ``v.carry.weight`` [common, common] (W_t, over t), each
        followed by its bias.
        """
        linear: dict[str, tuple[int, int]] = {}
        if self.kind == "rgcf":
            for name, width in zip(_RGCF, self.blocks, strict=True):
                linear[name] = (self.common, width)
                linear[f"{name}.gate"] = (self.common, 2 * self.common)
                linear[f"{name}.carry"] = (self.common, self.common)
        for layer, (width_in, width_out) in enumerate(itertools.pairwise(self.widths)):
            linear[str(layer)] = (width_out, width_in)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        return shapes

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for settings and model files."""
        return without_defaults(msgspec.to_builtins(self), _LEFT_OUT_AT_DEFAULT)

    @property
    def parameters(self) -> int:
        """Number of parameters: 1,599,589 for 2816 inputs and 101 classes (docs/paper.md, parameter counts)."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def without_defaults(fields: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``fields`` without those that have the value given in ``defaults``."""
    return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}


def initial_params(spec: HeadSpec, seed: int) -> Params:
    """Return initial values as of PyTorch's ``Linear``: uniform in ±1/sqrt(fan in), from NumPy's PCG64; or zeros.

    Same spec and seed give the same bytes on every machine.
    """
    if spec.start == "zero":
        return {name: np.zeros(shape, np.float32) for name, shape in spec.shapes.items()}
    random = np.random.Generator(np.random.PCG64(seed))
    params: Params = {}
    shapes = spec.shapes
    for name, shape in shapes.items():
        fan_in = shapes[name.removesuffix("bias").removesuffix("weight") + "weight"][1]
        bound = 1.0 / np.sqrt(fan_in)
        params[name] = _uniform(random, bound, shape)
    return params


def _uniform(random: np.random.Generator, bound: float, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Draw a tensor some values at a time: the draws are float64, twice the tensor's own size."""
    drawn = np.empty(math.prod(shape), np.float32)
    for start in range(0, len(drawn), DRAWN_AT_ONCE):
        part = drawn[start : start + DRAWN_AT_ONCE]
        part[:] = random.uniform(-bound, bound, size=len(part))
    return drawn.reshape(shape)


def check_params(spec: TensorLayout, params: Mapping[str, npt.NDArray[np.generic]], *, whose: str) -> None:
    """Raise DataError unless ``params`` is exactly the head's tensors, float32 and finite.

    ``whose`` begins the message: ``update from silo 'b'``.
    """
    if list(params) != list(spec.shapes):
        raise DataError(
            f"{whose}: tensors {list(params)}, expected {list(spec.shapes)}",
            fix="use the model and the settings of one run",
            code="tensor_names",
        )
    for name, shape in spec.shapes.items():
        tensor = params[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise DataError(
                f"{whose}: {name} is {tensor.dtype}{list(tensor.shape)}, expected float32{list(shape)}",
                fix="use the model and the settings of one run",
                code="tensor_shape",
            )
        if not all_finite(tensor):
            raise DataError(
                f"{whose}: {name} holds NaN or infinity",
                fix="train again with a lower learning rate, or take an earlier round's model",
                code="not_finite",
            )


def split_params(spec: TensorLayout, row: npt.NDArray[Number]) -> dict[str, npt.NDArray[Number]]:
    """Return the head's tensors as views of ``row``, all parameters as one flat array."""
    tensors, start = {}, 0
    for name, shape in spec.shapes.items():
        end = start + math.prod(shape)
        tensors[name] = row[start:end].reshape(shape)
        start = end
    return tensors


def all_finite(values: npt.NDArray[np.generic]) -> bool:
    """Return True when no value is NaN or infinite; looks at each one only when their sum is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def params_sha256(params: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """Return the SHA-256 over names, shapes and little-endian values, in the mapping's order."""
    digest = hashlib.sha256()
    for name, tensor in params.items():
        digest.update(f"{name}:{','.join(map(str, tensor.shape))};".encode())
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").data)
    return digest.hexdigest()


class ParamsDigest:
    """``params_sha256`` of a head's parameters, computed while their little-endian bytes arrive."""

    def __init__(self, spec: HeadSpec) -> None:
        self._digest = hashlib.sha256()
        self._left = 0  # bytes until the next tensor starts
        self._tensors = iter(spec.shapes.items())

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes. Raises ValueError when there are more than the head has."""
        view = memoryview(data)
        while view:
            if self._left == 0:
                name, shape = next(self._tensors, ("", ()))
                if not name:
                    raise ValueError("more bytes than the head's tensors have")
                self._digest.update(f"{name}:{','.join(map(str, shape))};".encode())
                self._left = 4 * math.prod(shape)
            taken = view[: self._left]
            self._digest.update(taken)
            self._left -= len(taken)
            view = view[len(taken) :]

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
