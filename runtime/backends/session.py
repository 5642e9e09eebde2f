"""An ONNX graph opened for running: the protocol of every backend's session.

A backend keeps arrays where it computes (host memory, a GPU): a ``Value`` is such an array. Results of
one run feed the next, or another graph of the same backend, without a copy through the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ...base.errors import GraphError

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


class Value(Protocol):
    """An array that may live on a device. Not changed after it is made."""

    def numpy(self) -> Array:
        """On the host; waits until it is computed."""


Feed: TypeAlias = Value | Array


class Rows(Protocol):
    """Memory of a session for one of its inputs, a row for each frame of a batch. Made by ``Session.rows``.

    It is zero at first, and the caller changes it between runs only. Rows of one session may be used with values of
    another one of the same device.
    """

    @property
    def shape(self) -> Shape: ...

    def first(self, count: int) -> Value:
        """Rows [0, ``count``) without a copy: later changes are seen. Valid as long as this object; asked for the
        same ``count`` again, it has the same address."""

    def put(self, row: int, value: Value, index: int) -> None:
        """Copy row ``index`` of ``value``, a Value of this session."""

    def copy(self, row: int, source: int) -> None:
        """Copy row ``source``."""

    def clear(self, row: int) -> None:
        """Fill with zeros."""


NO_ROWS: Mapping[str, Rows] = MappingProxyType({})


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

    @property
    def largest_batch(self) -> int | None:
        """The most rows (the first axis of every input) that a run may have; None: no bound."""

    def rows(self, input_name: str, shape: Shape) -> Rows:
        """Zeroed memory where this session computes, in the type of the input ``input_name``. ``shape``: that of the
        whole, rows first."""

    def close(self) -> None:
        """Give back what it holds on a device. Values that were computed stay valid."""

    def borrow(self, array: Array) -> Value:
        """A Value over the array's own memory where the session computes on the host, else a copy. The caller
        keeps the array alive, and changes it only between runs."""

    def value(self, of: Feed) -> Value:
        """``of`` where this session computes: an array is copied, a Value of this backend comes back as it
        is, a foreign one goes through the host."""

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once. ``feeds``: every input by name; arrays may be changed when this returns. Returns the wanted
        outputs (all when None) on the host."""

    def run_values(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, into: Mapping[str, Rows] = NO_ROWS
    ) -> dict[str, Value]:
        """Like ``run``, and the results stay where they were computed. Each is a Value of its own, which the next
        run does not change, but those of ``into``: an output named there is written to the first rows of its Rows,
        as many as the batch has, and is ``first`` of them. No feed of the run may be over those Rows."""


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


def shape_of(value: Value) -> Shape:
    """The value's shape, without fetching it where the backend's values know theirs."""
    known = getattr(value, "shape", None)
    found = known() if callable(known) else known
    return tuple(value.numpy().shape if found is None else found)


def wait_for(value: Value) -> None:
    """Wait until the value is computed, where its backend starts runs without waiting for them."""
    if (wait := getattr(value, "wait", None)) is not None:
        wait()


def on_host(feed: Feed) -> Array:
    """The feed as an array."""
    return feed if isinstance(feed, np.ndarray) else feed.numpy()
