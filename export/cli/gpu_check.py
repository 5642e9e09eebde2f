"""``flamest-export gpu-check``: build, verify and measure TensorRT engines, and write one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.errors import DataError
from ...base.options import JsonOption


@command
def gpu_check(
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Folder for the report; bench/results in a checkout.")
    ] = Path("bench/results"),
    weights: Annotated[
        str, typer.Option(metavar="SRC", help="As for the export; seeded weights of the full size when not given.")
    ] = "random:full",
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help="May be given several times; fp32 and fp16 when not given.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Runs of each graph.")] = 30,
    clips: Annotated[int, typer.Option(min=1, help="Clips through the whole chain.")] = 16,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Build, verify and measure TensorRT engines on a machine with an NVIDIA GPU, and write one report file.

    The report (JSON) holds the GPU, driver and versions, how each step went, and TensorRT and ONNX
    Runtime CUDA against the CPU: differences per graph, captions token by token, p50 and p95, clips a
    second, memory. It names neither host nor user: attach it to an issue. Without a GPU, or
    where a package is missing, it ends at once (exit code 78). When a step failed the report is
    there all the same, and the exit code is 65.
    """
    from ..bench.gpu_check import PRECISIONS, GpuCheckRequest, check_gpu

    request = GpuCheckRequest(results, weights, tuple(precision or PRECISIONS), repeats, clips)
    path, report = check_gpu(request, (lambda text: None) if as_json else print)
    if not report["ok"]:
        wrong = ", ".join((*report["failed"], *report["refused"]))
        raise DataError(
            f"gpu-check: some steps failed ({wrong}). The report is {path}",
            fix="attach the report to an issue all the same; 'problem' of a step in it holds the step's error output",
            code="gpu_check_failed",
        )
    if not as_json:
        print(f"all steps succeeded: {path}")
    return {"file": str(path), "ok": True}
