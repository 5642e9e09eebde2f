"""The command ``check``; cli.py registers it.

The command ``flamest-export doctor``: what this machine can build, and where it could run what it built.

The command ``gpu-check``; cli.py registers it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command
from ...base.errors import DataError
from ...base.options import JsonOption, TrustedKeyOption
from .options import BundleArgument

if TYPE_CHECKING:
    from ..checks import Finding


@command
def check(bundle: BundleArgument, trusted_key: TrustedKeyOption = None, as_json: JsonOption = False) -> dict[str, Any]:
    """Check a bundle's graphs without PyTorch, a runtime or a GPU: would TensorRT's parser take them?

    Per graph: no tensor stands in another file; ONNX's checker, full; strict shape inference; tensors
    and axes are the manifest's; the dtype ledger, read again from the file, is the manifest's and what the
    precision promises; every operator, with its element types, is one that TensorRT's parser takes from
    10.3 to 11 (our own list). A check that fails ends in exit code 65.
    """
    from ...runtime.bundle.signature import read_trusted_keys
    from ..checks import check_bundle, must_pass

    findings = check_bundle(bundle, read_trusted_keys(trusted_key or (), where="--trusted-key"))
    if not as_json:
        show_findings(findings)
    must_pass(findings, bundle)
    return {"bundle": str(bundle), "checks": finding_rows(findings)}


def show_findings(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        word = "remark" if finding.remark and finding.problems else "ok    " if finding.ok else "FAILED"
        print(f"{word} {finding.graph}: {finding.check}")
        for problem in finding.problems:
            print(f"         {problem}")


def finding_rows(findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
    return [
        {
            "graph": finding.graph,
            "check": finding.check,
            "ok": finding.ok,
            "remark": finding.remark and bool(finding.problems),
            "problems": list(finding.problems),
        }
        for finding in findings
    ]


@command
def doctor(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Say where this bundle's graphs could run.")] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Say what this machine can build, where it could run it, and what to type where something is missing.

    Below what can be built stands every backend from the best to the one that is always there, each with
    ok or the reason why not. What is marked optional is not needed for what the first lines say.
    """
    import msgspec

    from ...runtime.backends.machine import gather_facts
    from ...runtime.backends.options import DEFAULT_OPTIONS
    from ...runtime.backends.report import (
        candidate_lines,
        candidate_rows,
        machine_lines,
        machine_row,
        placement_lines,
        rank_graphs,
    )
    from ...runtime.bundle.manifest import read_manifest
    from ..doctor import TENSORRT, can_build_onnx, can_build_tensorrt, check_machine

    manifest = None if bundle is None else read_manifest(bundle)
    checks = check_machine(Path.cwd())
    facts = gather_facts()
    candidates = rank_graphs(facts, manifest, DEFAULT_OPTIONS)
    if not as_json:
        onnx, tensorrt = can_build_onnx(checks), can_build_tensorrt(checks)
        print(f"ONNX bundles can{'' if onnx else 'not'} be built here, TensorRT plans can{'' if tensorrt else 'not'}")
        for line in (*placement_lines(candidates, DEFAULT_OPTIONS), ""):
            print(line)
        for check in checks:
            print(f"{'ok     ' if check.ok else 'missing'} {check.name}: {check.found}")
            if check.fix:
                print(f"          {'optional' if check.name == TENSORRT else 'fix'}: {check.fix}")
        for line in ("", *machine_lines(facts), "", *candidate_lines(candidates)):
            print(line)
    return {
        "can_build": {"onnx": can_build_onnx(checks), "tensorrt": can_build_tensorrt(checks)},
        "checks": msgspec.to_builtins(checks),
        "machine": machine_row(facts),
        "ladder": candidate_rows(candidates),
    }


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
    """On a machine with an NVIDIA GPU: build TensorRT plans, verify them, measure, and write one report file.

    The report (JSON) holds the GPU, driver and versions, how each step went, and TensorRT and ONNX
    Runtime CUDA beside the CPU: differences per graph, captions token by token, p50 and p95, clips a
    second, memory. It names neither host nor user: send it back. Without a GPU, or
    where a package is missing, it ends at once (exit code 78). When a step failed the report is
    there all the same, and the exit code is 65.
    """
    from ..bench.gpu_check import PRECISIONS, GpuCheckRequest, check_gpu

    request = GpuCheckRequest(results, weights, tuple(precision or PRECISIONS), repeats, clips)
    path, report = check_gpu(request, (lambda text: None) if as_json else print)
    if not report["ok"]:
        wrong = ", ".join((*report["failed"], *report["refused"]))
        raise DataError(
            f"gpu-check: not all went well ({wrong}). The report is {path}",
            fix="send the report back all the same; 'problem' of a step in it is what the step said",
            code="gpu_check_failed",
        )
    if not as_json:
        print(f"all steps went well: {path}")
    return {"file": str(path), "ok": True}
