"""The trainable head: which tensors it has, in which order, and how it starts.

One ``HeadSpec`` decides the update's layout on the wire, the training-step graph on the silo and
the initial model on the coordinator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ..base.errors import DataError

Params = dict[str, npt.NDArray[np.float32]]


class HeadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A multi-layer perceptron with ReLU between its layers (paper section 4: 512 and 256)."""

    inputs: int
    outputs: int  # classes
    hidden: tuple[int, ...] = (512, 256)
    kind: Literal["mlp"] = "mlp"

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.inputs, *self.hidden, self.outputs)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor by name, in wire order: ``0.weight`` [out, in], ``0.bias`` [out], ``1.weight`` …"""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (width_in, width_out) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            shapes[f"{layer}.weight"] = (width_out, width_in)
            shapes[f"{layer}.bias"] = (width_out,)
        return shapes

    @property
    def parameters(self) -> int:
        """1,599,589 for 2816 inputs and 101 classes (NOTES on Table 1)."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


def initial_params(spec: HeadSpec, seed: int) -> Params:
    """Weights as PyTorch's ``Linear`` starts: uniform in ±1/sqrt(fan in), from NumPy's PCG64.

    Same spec and seed give the same bytes on every machine.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    params: Params = {}
    for name, shape in spec.shapes.items():
        fan_in = spec.shapes[name.replace("bias", "weight")][1]
        bound = 1.0 / np.sqrt(fan_in)
        params[name] = random.uniform(-bound, bound, size=shape).astype(np.float32)
    return params


def check_params(spec: HeadSpec, params: Mapping[str, npt.NDArray[np.generic]], *, whose: str) -> None:
    """Raise DataError unless ``params`` is exactly the head's tensors, float32 and finite.

    ``whose`` begins the message: ``update from silo 'b'``.
    """
    if list(params) != list(spec.shapes):
        raise DataError(f"{whose}: tensors {list(params)}, expected {list(spec.shapes)}", code="tensor_names")
    for name, shape in spec.shapes.items():
        tensor = params[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise DataError(
                f"{whose}: {name} is {tensor.dtype}{list(tensor.shape)}, expected float32{list(shape)}",
                code="tensor_shape",
            )
        if not np.isfinite(tensor).all():
            raise DataError(f"{whose}: {name} holds NaN or infinity", code="not_finite")


def params_sha256(params: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """SHA-256 over names, shapes and little-endian values, in the mapping's order."""
    digest = hashlib.sha256()
    for name, tensor in params.items():
        digest.update(f"{name}:{','.join(map(str, tensor.shape))};".encode())
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").data)
    return digest.hexdigest()
