"""One ONNX graph, opened for running. All graphs run through here, the training step too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, MissingExtra

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]


class Session:
    """An opened graph: named arrays in, named arrays out.

    Open with ``open_session``. Not tied to a thread; runs may overlap.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs: tuple[str, ...] = tuple(value.name for value in session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(value.name for value in session.get_outputs())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once. ``feeds``: every input by name. Returns the wanted outputs (all when None)."""
        names = list(self.outputs if outputs is None else outputs)
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def run_values(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Like ``run`` on OrtValues (see ``as_value``): results feed another graph with no copy."""
        names = list(self.outputs if outputs is None else outputs)
        return dict(zip(names, self._session.run_with_ort_values(names, dict(feeds)), strict=True))

    def bind(self) -> Any:
        """A fresh onnxruntime IOBinding for loops that reuse their buffers."""
        return self._session.io_binding()

    def run_bound(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)


def as_value(array: Array) -> Any:
    """An OrtValue over a copy of ``array``, owned by ONNX Runtime.

    (A value made over NumPy's memory does not keep it alive: onnxruntime 1.32 reads freed memory.)
    """
    import onnxruntime

    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, "cpu")
    value.update_inplace(np.ascontiguousarray(array))
    return value


def open_session(graph: Path | bytes, *, threads: int | None = None, spin: bool = False) -> Session:
    """Open an ONNX file (or its bytes) on the CPU.

    ``threads``: how many cores one run may use (None: all that this process may use). ``spin``: idle
    threads wait busily, which is faster for many small runs and costs those who share the machine.
    Raises MissingExtra without onnxruntime, DataError when the graph cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", extra="agent") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(_allowed_cores())
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception types share no public base
        name = "graph" if isinstance(graph, bytes) else str(graph)
        raise DataError(f"{name} cannot be opened by ONNX Runtime: {error}", code="bad_graph") from error
    return Session(session)


def _allowed_cores() -> set[int]:
    import os

    return os.sched_getaffinity(0)
