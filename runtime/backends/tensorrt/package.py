"""TensorRT's Python package: its import, with an error for each way of failing, its log and its builder.

The package loads gigabytes, and some of its calls end the process where there is no driver
(``backends/machine.py`` asks the driver first).
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from ..unavailable import Code, unavailable

KEPT_LINES = 40  # of the log: errors quote its end


def import_tensorrt() -> Any:
    """The module ``tensorrt``; raises the error of TRT_MISSING or TRT_LIBS."""
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise unavailable(Code.TRT_MISSING, str(error)).error() from error
    except ImportError as error:  # "libnvonnxparser.so.10: cannot open shared object file: …"
        raise unavailable(Code.TRT_LIBS, str(error)).error() from error
    except OSError as error:  # raised by the package of the libraries, which opens them with ctypes
        raise unavailable(Code.TRT_LIBS, str(error)).error() from error
    return tensorrt


class TensorRtLog:
    """The last lines of TensorRT's log; filled from its threads."""

    def __init__(self) -> None:
        self._lines: deque[tuple[str, str]] = deque(maxlen=KEPT_LINES)
        self._lock = threading.Lock()

    def add(self, severity: str, text: str) -> None:
        """``severity``: INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""
        if severity in ("INTERNAL_ERROR", "ERROR", "WARNING"):
            with self._lock:
                self._lines.append((severity, text))

    @property
    def errors(self) -> str:
        """TensorRT's error messages, one per line; its warnings when there was no error."""
        with self._lock:
            errors = [text for severity, text in self._lines if "ERROR" in severity]
            return "\n".join(errors or [text for _, text in self._lines])


def make_logger(trt: Any, log: TensorRtLog) -> Any:
    """A ``trt.ILogger`` that writes to ``log``. It must live as long as what is made with it."""

    class _Logger(trt.ILogger):  # type: ignore[misc]  # the class is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 requires this call

        def log(self, severity: Any, msg: str) -> None:
            log.add(severity.name, msg)

    return _Logger()


def make_builder(trt: Any, logger: Any, log: TensorRtLog) -> Any:
    """Make ``trt.Builder``, the first object that needs a driver; raises NO_DRIVER_OR_GPU or TRT_NO_BUILDER."""
    if not hasattr(trt, "Builder"):
        raise unavailable(Code.TRT_NO_BUILDER, f"{trt.__name__} {trt.__version__} has no Builder").error()
    try:
        return trt.Builder(logger)
    except TypeError as error:  # pybind11: "factory function returned nullptr"
        reason = log.errors or "TensorRT logged nothing"
        raise unavailable(
            Code.NO_DRIVER_OR_GPU, f"TensorRT cannot make a builder ({error}): {reason}"
        ).error() from error
