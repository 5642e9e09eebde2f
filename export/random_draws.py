"""Seeded numbers for ``random:*`` sources: the same bytes from the same seed on every machine."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

ROUNDED_BITS = 14  # of the mantissa of measured values
SCORE_GAIN = 1.5  # of queries and of keys: attention scores have its square as deviation


def draw(name: str, seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal float32 values that depend on name and seed only."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(shape, dtype=np.float32)


def assign(target: Any, values: npt.NDArray[Any]) -> None:
    """Set a PyTorch tensor in place, as float32."""
    import torch

    with torch.no_grad():
        target.copy_(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(target.shape))


def rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Few mantissa bits: float64 noise of another machine's order of summing does not show."""
    mantissa, exponent = np.frexp(values)
    few = np.ldexp(np.round(np.ldexp(mantissa, ROUNDED_BITS)), exponent - ROUNDED_BITS)
    return np.asarray(few, dtype=np.float32)
