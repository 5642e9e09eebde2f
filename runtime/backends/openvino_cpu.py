"""OpenVINO on the CPU: the same ONNX files, and bf16 at compile time where the processor has it."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...base.errors import GraphError
from ...base.process import usable_cores
from .host_rows import HostRows
from .run_limits import limit_process_memory, limited
from .session import NO_ROWS, Array, Feed, Rows, Shape, Value, check_shape, on_host, wanted_outputs
from .unavailable import Code, unavailable

Computed = Literal["f32", "bf16"]
# OpenVINO's names of the layers that are matmuls
MATMUL_LAYERS = frozenset({"Convolution", "FullyConnected", "MatMul", "Deconvolution", "ScaledDotProductAttention"})


@dataclass(frozen=True, eq=False)
class HostValue:
    """An array of its own; nothing else writes to it."""

    array: Array

    def numpy(self) -> Array:
        return self.array


class OpenVinoSession:
    """An opened graph (session.py). One thread at a time."""

    computes_on_host = True
    largest_batch = None

    def __init__(self, model: Any, compiled: Any, computed: Computed, shown: str = "graph") -> None:
        self._shown = shown
        self._request = compiled.create_infer_request()
        # The model's names: where compiling has removed a cast, a port has the names of both its ends.
        self.inputs: tuple[str, ...] = tuple(port.get_any_name() for port in model.inputs)
        self.outputs: tuple[str, ...] = tuple(port.get_any_name() for port in model.outputs)
        # OpenVINO's NumPy type of bfloat16 is float16: its bits are passed on as they are.
        types = [port.get_element_type().to_dtype() for port in compiled.inputs]
        self._dtypes = dict(zip(self.inputs, types, strict=True))
        self.where = f"OpenVINO CPU {computed}"

    @classmethod
    def open(
        cls,
        graph: Path,
        *,
        computed: Computed = "f32",
        threads: int | None = None,
        shown: str = "",
        profile: bool = False,
    ) -> OpenVinoSession:
        """Compile ``graph`` so that float matmuls are computed in ``computed``; int8 matmuls stay int8.

        ``shown``: the graph's name in messages, where its path says nothing. ``profile``: measure every layer, for
        ``layer_times``.
        Raises the errors of OPENVINO_MISSING, OPENVINO_REJECTED, and PRECISION when the compiled graph reports
        another type (a processor without bf16 falls back to f32 silently).
        """
        core, name = _core(), shown.rpartition("/")[2] or graph.name
        settings = {
            "INFERENCE_PRECISION_HINT": computed,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "PERF_COUNT": profile,
        }
        limit_process_memory()
        try:
            with limited(name, lambda: None):  # a compilation cannot be stopped
                model = core.read_model(str(graph))
                _divide_exactly(model)
                compiled = core.compile_model(model, "CPU", settings)
        except GraphError as error:
            evidence = f"{name}: {_last_line(error.__cause__ or error)}"
            raise unavailable(Code.OPENVINO_REJECTED, evidence).error() from error
        found = matmul_precisions(compiled)
        if (computed == "bf16" and not found["bf16"]) or found["f16"]:
            evidence = f"{name}: {computed} was requested, OpenVINO computes its matmuls in {dict(found)}"
            raise unavailable(
                Code.PRECISION, evidence, fix="leave --precision out, or run on a processor with bf16"
            ).error()
        return cls(model, compiled, computed, name)

    def close(self) -> None:
        """Nothing: its memory is the host's."""

    def value(self, of: Feed) -> Value:
        return of if isinstance(of, HostValue) else HostValue(np.array(on_host(of)))

    def borrow(self, array: Array) -> Value:
        return HostValue(array)

    def rows(self, input_name: str, shape: Shape) -> Rows:
        return HostRows(shape, self._dtypes[input_name], borrow=self.borrow)

    def run(self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return self._run(feeds, dict.fromkeys(wanted_outputs(self, outputs)))

    def run_values(
        self, feeds: Mapping[str, Feed], outputs: Sequence[str] | None = None, *, into: Mapping[str, Rows] = NO_ROWS
    ) -> dict[str, Value]:
        batch = len(on_host(feeds[self.inputs[0]])) if into else 0
        written = {name: rows.first(batch) for name, rows in into.items()}
        targets = {name: written[name].numpy() if name in written else None for name in wanted_outputs(self, outputs)}
        return {name: written.get(name) or HostValue(array) for name, array in self._run(feeds, targets).items()}

    def _run(self, feeds: Mapping[str, Feed], targets: Mapping[str, Array | None]) -> dict[str, Array]:
        """The outputs named in ``targets``, each in the array that is given there or in one of its own."""
        # Called once for all outputs: calling the compiled model per output would compute the graph as often.
        arrays = {name: np.asarray(on_host(feed), order="C") for name, feed in feeds.items()}
        with limited(self._shown, self._request.cancel):
            results = self._request.infer(arrays, share_inputs=True, share_outputs=True)
            # The next run overwrites the request's memory.
            return {name: _copied(name, results[name], target) for name, target in targets.items()}

    def layer_times(self) -> tuple[Any, ...]:
        """OpenVINO's ``ProfilingInfo`` of every layer in the last run, when it was opened with ``profile``."""
        return tuple(self._request.get_profiling_info())


def _copied(name: str, result: Array, target: Array | None) -> Array:
    if target is None:
        return np.array(result)
    check_shape(result, target.shape, output=name)
    np.copyto(target, result)
    return target


def import_openvino() -> Any:
    """The module ``openvino``, imported without its telemetry; raises the error of OPENVINO_MISSING.

    Importing openvino starts a process that reports the import to Google Analytics unless the user has
    opted out (seen with 2026.4: openvino/tools/ovc/__init__.py, enable_opt_in_dialog=False), and writes an
    identifier to ~/intel. A silo reports to nobody: openvino works without its telemetry package.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "cannot be imported"
    try:
        import openvino
    except ImportError as error:
        raise unavailable(Code.OPENVINO_MISSING, str(error)).error() from error
    return openvino


@functools.cache
def _core() -> Any:
    """The process's one OpenVINO runtime, which is never closed.

    Its CPU plugin gives the thread a stack for signal handlers and frees it when it is closed. Of several that are
    closed in another order than the reverse, one leaves a freed stack behind, and the next signal that Python handles
    ends the process with SIGSEGV (seen with 2026.4: Ctrl-C after ``--precision auto`` had measured).
    """
    return import_openvino().Core()


def _divide_exactly(model: Any) -> None:
    """Keep OpenVINO from multiplying by reciprocals where a graph normalises its bytes.

    By default it does so for every constant divisor. Then seven in ten values differ in their last bit from those of a
    host's table. The mark is its own runtime attribute NonconvertableDivide (nonconvertible_divide.hpp in
    https://github.com/openvinotoolkit/openvino); a version that does not know it ignores it.
    """
    following = [node for node in model.get_parameters() if node.get_element_type().get_type_name() == "u8"]
    while following:
        node = following.pop()
        for target in node.output(0).get_target_inputs():
            after = target.get_node()
            if after.get_type_name() == "Divide":
                after.get_rt_info()["nonconvertable_divide_0"] = True
            if after.get_type_name() in ("Convert", "Transpose", "Subtract", "Divide"):
                following.append(after)


def matmul_precisions(compiled: Any) -> Counter[str]:
    """Matmuls of the compiled graph by type, from its runtime model: {"bf16": 18}."""
    found: Counter[str] = Counter()
    for operation in compiled.get_runtime_model().get_ops():
        facts = operation.get_rt_info()
        if facts["layerType"].astype(str) in MATMUL_LAYERS:
            found[facts["runtimePrecision"].astype(str)] += 1
    return found


def _last_line(error: BaseException) -> str:
    """The last line of OpenVINO's message: the first lines are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
