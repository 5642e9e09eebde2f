"""An engine of one matmul: TensorRT, driver, compiler cache and memory work together, or say at once why not."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ...runtime.backends.tensorrt.first_engine import try_first_engine
from ...runtime.backends.tensorrt.package import import_tensorrt


def build_and_run() -> dict[str, Any]:
    """Build and compare it in a child process; the verdict, and the seconds. Raises as ``try_first_engine``."""
    started = time.monotonic()
    verdict = try_first_engine()
    seconds = time.monotonic() - started
    return {"seconds": seconds, "tensorrt": import_tensorrt().__version__, "verdict": msgspec.to_builtins(verdict)}
