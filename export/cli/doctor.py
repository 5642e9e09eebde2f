"""``flamest-export doctor``: which bundles this machine can build, and which backends it could run them on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.options import JsonOption


@command
def doctor(
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Show where this bundle's graphs could run.")] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Report what this machine can build and where it could run it, with a fix for everything that is missing.

    Then every backend is listed, from the best to the one that is always there, each with ok or the reason why not.
    Nothing that is marked optional is needed for the bundles that the first lines name.
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
    from ...runtime.bundle.manifest_reading import read_manifest
    from ..doctor import TENSORRT, can_build_onnx, can_build_tensorrt, check_machine
    from .inspect import engine_verdicts

    manifest = None if bundle is None else read_manifest(bundle)
    checks = check_machine(Path.cwd())
    facts = gather_facts()
    candidates = rank_graphs(facts, manifest, DEFAULT_OPTIONS)
    verdicts = [] if manifest is None else engine_verdicts(manifest)
    if not as_json:
        onnx, tensorrt = can_build_onnx(checks), can_build_tensorrt(checks)
        print(f"ONNX bundles can{'' if onnx else 'not'} be built here, TensorRT engines can{'' if tensorrt else 'not'}")
        for line in (*placement_lines(candidates, DEFAULT_OPTIONS), ""):
            print(line)
        for check in checks:
            print(f"{'ok     ' if check.ok else 'missing'} {check.name}: {check.found}")
            if check.fix:
                print(f"          {'optional' if check.name == TENSORRT else 'fix'}: {check.fix}")
        for line in ("", *machine_lines(facts), "", *candidate_lines(candidates)):
            print(line)
        for engine in verdicts:
            print(f"{engine['file']} ({engine['gpu']}, driver {engine['driver']}): {engine['said']}")
    return {
        "can_build": {"onnx": can_build_onnx(checks), "tensorrt": can_build_tensorrt(checks)},
        "checks": msgspec.to_builtins(checks),
        "machine": machine_row(facts),
        "ladder": candidate_rows(candidates),
        "verdicts": verdicts,
    }
