"""An ONNX graph opened for running: the protocol of every backend's session.

A backend keeps arrays where it computes (host memory, a GPU): a ``Value`` is such an array. Results of
one run feed the next, or another graph of the same backend, without a copy through the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ...base.errors import GraphError

Array = npt.NDArray[Any]


class Value(Protocol):
    """An array that may live on a device. Not changed after it is made."""

    def numpy(self) -> Array:
        """On the host; waits until it is computed."""


Feed: TypeAlias = Value | Array


class Session(Protocol):
    """An opened graph: named arrays in, named arrays out. One thread at a time, unless the backend allows more."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def where(self) -> str:
        """The runtime and device, as the runtime reports them: "ONNX Runtime CPU", "TensorRT 10.16 on NVIDIA H100"."""

    @property
    def computes_on_host(self) -> bool:
        """True when it computes in the memory where NumPy's arrays are."""

    def borrow(self, array: Array) -> Value:
        """A Value over the array's own memory where the session computes on the host, else a copy. The caller
        keeps the array alive, and changes it only between runs."""

    def value(self, of: Feed) -> Value:
        """``of`` where this session computes: an array is copied, a Value of this backend comes back as it
        is, a foreign one goes through the host."""

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once. ``feeds``: every input by name. Returns the wanted outputs (all when None) on the host."""

    def run_values(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Like ``run``, and the results stay where they were computed. Each is a Value of its own: the next
        run does not change it."""


def wanted_outputs(session: Session, outputs: Sequence[str] | None) -> list[str]:
    """The names that ``run`` and ``run_values`` return, in order."""
    return list(session.outputs if outputs is None else outputs)


def check_shape(array: Array, expected: Sequence[int | None], *, output: str) -> Array:
    """Return ``array``, if it has the ``expected`` sizes; None is any. Raises GraphError otherwise."""
    found = array.shape
    if len(found) != len(expected) or any(size not in (None, found[axis]) for axis, size in enumerate(expected)):
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise GraphError(
            f"a graph gave '{output}' of shape {list(array.shape)}, expected [{wanted}]",
            fix="export the bundle again with this version of flamest-export",
        )
    return array


def on_host(feed: Feed) -> Array:
    """The feed as an array."""
    return feed if isinstance(feed, np.ndarray) else feed.numpy()
