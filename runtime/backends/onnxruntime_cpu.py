"""ONNX Runtime on the CPU. The reference for all other backends; it also runs the training step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ...base.errors import DataError, MissingExtra
from ...base.process import usable_cores
from .element_types import ORT_TYPES
from .host_rows import HostRows
from .run_limits import graph_memory_bytes, limited
from .session import NO_ROWS, Array, Feed, Rows, Shape, Value, on_host, wanted_outputs

if TYPE_CHECKING:
    import onnxruntime

PRECISE_INT8 = "session.x64quantprecision"
SHARED_WEIGHT = "Attempt to replace the existing tensor"


class OrtSession:
    """An opened graph (session.py). Its values are OrtValues. Not tied to a thread; runs may overlap."""

    where = "ONNX Runtime CPU"
    computes_on_host = True
    largest_batch = None

    def __init__(self, session: onnxruntime.InferenceSession, shown: str = "graph") -> None:
        self._session = session
        self._shown = shown
        self.inputs: tuple[str, ...] = tuple(value.name for value in session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(value.name for value in session.get_outputs())
        self._types: dict[str, str] = {value.name: value.type for value in session.get_inputs()}

    def rows(self, input_name: str, shape: Shape) -> Rows:
        return HostRows(shape, ORT_TYPES[self._types[input_name]], borrow=self.borrow, view=_view)

    def close(self) -> None:
        """Nothing: its memory is the host's."""

    def value(self, of: Feed) -> Value:
        return cast(Value, of if _is_own(of) else as_value(on_host(of)))

    def borrow(self, array: Array) -> Value:
        import onnxruntime

        return cast(Value, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu"))

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = wanted_outputs(self, outputs)
        arrays = {name: on_host(feed) for name, feed in feeds.items()}
        with limited_run(self._shown) as options:
            return dict(zip(names, self._session.run(names, arrays, options), strict=True))

    def run_values(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, into: Mapping[str, Rows] = NO_ROWS
    ) -> dict[str, Value]:
        names = wanted_outputs(self, outputs)
        values = {name: self.value(feed) for name, feed in feeds.items()}
        if into:
            return self._run_into(values, names, into)
        with limited_run(self._shown) as options:
            return dict(zip(names, self._session.run_with_ort_values(names, values, options), strict=True))

    def _run_into(self, values: Mapping[str, Any], names: Sequence[str], into: Mapping[str, Rows]) -> dict[str, Value]:
        binding, batch = self.bind(), values[self.inputs[0]].shape()[0]
        written = {name: rows.first(batch) for name, rows in into.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            if name in written:
                binding.bind_ortvalue_output(name, written[name])
            else:
                binding.bind_output(name)
        with limited_run(self._shown) as options:
            self._session.run_with_iobinding(binding, options)
        return dict(zip(names, binding.get_outputs(), strict=True)) | written

    def bind(self) -> Any:
        """A fresh onnxruntime IOBinding for loops that reuse their buffers."""
        return self._session.io_binding()

    def run_bound(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)

    def end_profile(self) -> Path:
        """Write the times of all runs since it was opened with ``profile``; return the file, JSON."""
        return Path(self._session.end_profiling())


def open_session(
    graph: Path | bytes,
    *,
    threads: int | None = None,
    spin: bool = False,
    shown: str = "",
    profile: Path | None = None,
) -> OrtSession:
    """Open an ONNX file (or its bytes) on the CPU.

    ``threads``: cores that one run may use (None: all that this process may use). ``spin``: idle threads wait
    busily, which is faster for many small runs and costs other processes of the machine. ``shown``: the graph's name
    in messages, where its path says nothing. ``profile``: the beginning of the name of a file with the time of
    every node, which ``OrtSession.end_profile`` writes.
    Raises MissingExtra without onnxruntime, DataError (``bad_graph``) when the graph cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", extra="agent") from error

    _share_arena()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Without VNNI the products of 8-bit integers overflow in 16 bits, and int8 graphs lose their accuracy: with it
    # ONNX Runtime turns the weights into a form that does not, where the processor needs it.
    options.add_session_config_entry(PRECISE_INT8, "1")
    options.enable_mem_pattern = False  # it would keep the largest run's memory for each graph
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if spin:  # within a run only: between runs other processes use the cores
        options.add_session_config_entry("session.force_spinning_stop", "1")
    source = graph if isinstance(graph, bytes) else str(graph)
    name = shown or ("graph" if isinstance(graph, bytes) else str(graph))
    with limited(name, lambda: options.set_load_cancellation_flag(True)):
        try:
            session = _loaded(source, options)
        except Exception as error:  # onnxruntime's own exception types share no public base
            if "CODE: MODEL_LOAD_CANCELED" in str(error).upper():
                raise
            reason = str(error) if isinstance(graph, bytes) else str(error).replace(str(graph), name)
            raise DataError(
                f"{name} cannot be opened by ONNX Runtime: {reason}",
                fix="flamest-export check DIR examines the bundle; if its files are right, update onnxruntime",
                code="bad_graph",
            ) from error
    return OrtSession(session, name)


def _loaded(source: bytes | str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Load a graph. Raises onnxruntime's own exceptions."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if SHARED_WEIGHT not in str(error):
            raise
    # It cannot turn a weight that two products share (1.32). Where that costs accuracy, comparisons show it.
    options.add_session_config_entry(PRECISE_INT8, "0")
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def limited_run(shown: str) -> Iterator[Any]:
    """Options for one run of the graph ``shown``, which ends with GraphError when it takes too long (run_limits.py)."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4  # fatal: the error says it
    with limited(shown, lambda: setattr(options, "terminate", True)):
        yield options


@functools.cache
def _share_arena() -> None:
    """Share one arena among all graphs of the process, which grows by what is requested and not by doubling.

    An arena per graph would keep each graph's largest run, and an extractor runs one graph after the other.
    https://onnxruntime.ai/docs/get-started/with-c.html (sharing allocators between sessions)
    """
    import onnxruntime as ort

    ort.disable_telemetry_events()  # should onnxruntime have been imported before this package (__init__.py)
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    usual = -1
    as_asked = {"arena_extend_strategy": 1, "max_mem": graph_memory_bytes()}
    sizes = {"initial_chunk_size_bytes": usual, "max_dead_bytes_per_chunk": usual}
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(as_asked | sizes))


def as_value(array: Array) -> Any:
    """An OrtValue over a copy of ``array``, owned by ONNX Runtime.

    (A value made over NumPy's memory does not keep it alive: onnxruntime 1.32 reads freed memory.)
    """
    import onnxruntime

    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, "cpu")
    value.update_inplace(np.ascontiguousarray(array))
    return value


def _view(value: Value) -> Array:
    """The memory of an OrtValue as an array, read only."""
    return np.from_dlpack(cast(Any, value))


def _is_own(feed: Feed) -> bool:
    import onnxruntime

    return isinstance(feed, onnxruntime.OrtValue) and feed.device_name() == "cpu"
