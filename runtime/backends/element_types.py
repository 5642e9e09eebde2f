"""Element types of tensors on a device: NumPy's, and bfloat16, for which NumPy has none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...base.errors import InvariantError
from .session import Array

BFLOAT16_NAME = "bfloat16"
# Types of tensors in ONNX Runtime's words, for those of our graphs
ORT_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(bool)": "bool",
}  # fmt: skip
ONNX_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16: IO binding takes ONNX's number where NumPy has no type


@dataclass(frozen=True)
class ElementType:
    """One type by the name that manifests use: ``float32``, ``int64``, …, ``bfloat16``."""

    name: str
    itemsize: int  # bytes

    @classmethod
    def of(cls, dtype: npt.DTypeLike | ElementType) -> ElementType:
        """Element type of a NumPy type, or of the name of one or of ``bfloat16``. Raises TypeError for another name."""
        if isinstance(dtype, ElementType):
            return dtype
        if isinstance(dtype, str) and dtype == BFLOAT16_NAME:
            return BFLOAT16
        found = np.dtype(dtype)
        return _KNOWN.setdefault(found.name, cls(found.name, found.itemsize))

    @property
    def bits_dtype(self) -> np.dtype[Any]:
        """NumPy type of an array that holds the elements' bits: their own, uint16 for bfloat16."""
        return np.dtype(np.uint16) if self.name == BFLOAT16_NAME else np.dtype(self.name)

    def size_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of an array of this type."""
        return math.prod(shape) * self.itemsize

    def bits_of(self, array: Array, what: str) -> Array:
        """The C-contiguous bits of a host array of this type. For bfloat16: float32 is rounded to the nearest (ties to
        even), uint16 is taken as bits. Raises InvariantError, naming ``what``, for an array of another type."""
        array = np.asarray(array, order="C")
        if self.name == BFLOAT16_NAME and array.dtype == np.float32:
            return _round_to_bfloat16(array)
        if array.dtype != self.bits_dtype:
            raise InvariantError(f"{what} is {array.dtype}, expected {self.name}")
        return array

    def values_of(self, bits: Array) -> Array:
        """Bits as an array that NumPy computes with: bfloat16 becomes float32, exactly."""
        if self.name != BFLOAT16_NAME:
            return bits
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)

    def __str__(self) -> str:
        return self.name


BFLOAT16 = ElementType(BFLOAT16_NAME, 2)
_KNOWN: dict[str, ElementType] = {}  # one object for each, so that comparing them is cheap


def _round_to_bfloat16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = array.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)  # rounding could carry a NaN into infinity
    return np.where(np.isnan(array), quiet_nan, rounded).astype(np.uint16)
