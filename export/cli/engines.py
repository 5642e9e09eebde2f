"""``flamest-export engines``: TensorRT engines of a bundle, built on the machine that will run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, end_with
from ...base.options import JsonOption, TrustedKeyOption, takes_records
from ..engine_options import EngineFlags
from .options import BundleArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...runtime.backends.tensorrt.supply import EngineResult

AgainOption = Annotated[bool, typer.Option("--again", help="Build engines that are there already, too.")]


@command
@takes_records
def engines(
    bundle: BundleArgument,
    flags: EngineFlags,
    again: AgainOption = False,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Build TensorRT engines of an ONNX bundle for this machine's GPU. Needs no PyTorch.

    Every file of the bundle is checked first. An engine goes into the bundle, next to its ONNX graph; those
    of a signed bundle, which must not change, go into this machine's engine cache, where the agent finds
    them. Engines that are there already, for this TensorRT, GPU and options, are not built again.

    Every engine is compared with its ONNX graph on the CPU before it is used, in the process that built it: one that
    computes something else ends the command with ENGINE_WRONG, after the engines of the other graphs are built. The
    verdict is kept in the engine cache, for this driver and GPU.
    """
    from ...runtime.backends.machine import gather_facts
    from ...runtime.backends.tensorrt.bundled import remove_unlisted_engines
    from ...runtime.backends.tensorrt.supply import is_signed
    from ...runtime.bundle.opening import open_bundle, open_manifest
    from ...runtime.bundle.signature import read_trusted_keys
    from ..engines import RequestedEngines, engines_command, supply_engines

    flags.options()  # raises for a wrong value
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    manifest, _ = open_manifest(bundle, trusted)  # before the machine: the folder may be no bundle
    options = flags.options(tf32=manifest.tf32)
    requested = RequestedEngines(options, gather_facts(), flags.timing_cache, flags.plan_cache)
    typed = engines_command(bundle, options)
    fix = f"fix the problems above and re-run: {typed}; without engines the bundle runs on ONNX Runtime"
    target = requested.target(fix=fix, again=again)
    if not is_signed(bundle):
        remove_unlisted_engines(bundle)
    supplied = supply_engines(open_bundle(bundle, trusted), target)
    if not as_json:
        show_engines(supplied.done)
    failed = [
        {"graph": name, "code": error.code, "message": error.message, "fix": error.fix}
        for name, error in supplied.failed.items()
    ]
    result = {"bundle": str(bundle), "plans": engine_rows(supplied.done), "failed": failed}
    if error := supplied.error():
        end_with(error, result, as_json=as_json)
    return result


def show_engines(done: Sequence[EngineResult]) -> None:
    for one in done:
        how = f"built in {one.record.build_seconds:.1f} s" if one.fresh else "was there already"
        print(f"  {one.graph:13} {one.path}, {one.bytes / 1e6:.1f} MB, {how}")
        remarks = one.remarks if one.verdict is None else (str(one.verdict), *one.verdict.remarks, *one.remarks)
        for remark in remarks:
            print(f"                {remark}")
    if done:
        engine = done[0].record
        print(f"  TensorRT {engine.tensorrt} on {engine.gpu} ({engine.compute_capability}), driver {engine.driver}")


def engine_rows(done: Sequence[EngineResult]) -> list[dict[str, Any]]:
    """The engines as mappings, for ``--json``."""
    import msgspec

    return [
        {
            "graph": one.graph,
            "path": str(one.path),
            "bytes": one.bytes,
            "built_now": one.fresh,
            "remarks": list(one.remarks),
            "verdict": None if one.verdict is None else msgspec.to_builtins(one.verdict),
            **msgspec.to_builtins(one.record),
        }
        for one in done
    ]
