"""The command ``flamest-export doctor``: what this machine can build, and where it could run what it built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.console import command
from .cli_options import JsonOption


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

    from ..runtime.backends.machine import gather_facts
    from ..runtime.backends.options import NO_WISHES
    from ..runtime.backends.report import first_lines, ladder_lines, ladder_rows, ladders, machine_lines, machine_row
    from ..runtime.bundle.manifest import read_manifest
    from .doctor import TENSORRT, can_build_onnx, can_build_tensorrt, check_machine

    manifest = None if bundle is None else read_manifest(bundle)
    checks = check_machine(Path.cwd())
    facts = gather_facts()
    rungs = ladders(facts, manifest, NO_WISHES)
    if not as_json:
        onnx, tensorrt = can_build_onnx(checks), can_build_tensorrt(checks)
        print(f"ONNX bundles can{'' if onnx else 'not'} be built here, TensorRT plans can{'' if tensorrt else 'not'}")
        for line in (*first_lines(rungs, NO_WISHES), ""):
            print(line)
        for check in checks:
            print(f"{'ok     ' if check.ok else 'missing'} {check.name}: {check.found}")
            if check.fix:
                print(f"          {'optional' if check.name == TENSORRT else 'fix'}: {check.fix}")
        for line in ("", *machine_lines(facts), "", *ladder_lines(rungs)):
            print(line)
    return {
        "can_build": {"onnx": can_build_onnx(checks), "tensorrt": can_build_tensorrt(checks)},
        "checks": msgspec.to_builtins(checks),
        "machine": machine_row(facts),
        "ladder": ladder_rows(rungs),
    }
