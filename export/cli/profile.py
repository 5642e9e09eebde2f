"""``flamest-export profile``: where the time goes, layer by layer, on every backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.errors import UsageError
from ...base.options import JsonOption, ThreadsOption, TrustedKeyOption
from ...runtime.backends.options import BACKENDS
from .bench import check_backends
from .options import BundleArgument

LAYERS = 10  # of a graph that are shown


@command
def profile(
    bundle: BundleArgument,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help=f"Profile on this one only; may be given several times. Of {', '.join(BACKENDS)}, and openvino:bf16.",
        ),
    ] = None,
    graph: Annotated[
        list[str] | None,
        typer.Option("--graph", metavar="NAME", help="This graph only; may be given several times."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Clips in one run of a graph. That of extraction when not given."),
    ] = None,
    runs: Annotated[int, typer.Option(min=2, help="Runs of each graph that are averaged.")] = 10,
    layers: Annotated[
        int, typer.Option(min=1, help="Layers of each graph that are shown, the longest first.")
    ] = LAYERS,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Keep the runtimes' own files there: ONNX Runtime's trace (open it at https://ui.perfetto.dev), "
            "OpenVINO's layers, TensorRT's description of the engine, and profile.json.",
        ),
    ] = None,
    detailed: Annotated[
        bool,
        typer.Option(
            "--detailed",
            help="TensorRT: build an engine that describes each layer's kernel, in the engine cache (minutes).",
        ),
    ] = False,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show where the time of an extraction goes: stage by stage, then layer by layer of every graph, on each backend.

    The times are those of the runtimes' own profilers. Per graph you see the time of a run without a profiler, the
    arithmetic in it and its share of what a large matmul reaches on the same backend here: near 100 % only fewer
    operations or a lower precision would help. Then the operators and the longest layers with their shares, and memory.
    Profilers slow small layers down: compare shares, and take times from flamest-export bench.

    A backend that does not run here is listed with the reason; when none does, the command fails (nothing_measured).
    """
    from ...base.progress import progress_bar
    from ...runtime.bundle.opening import open_manifest
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.bundle.signature import read_trusted_keys
    from ..profiling.run import ProfileRequest, run_profile

    names = tuple(backend or BACKENDS)
    check_backends(names)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    bundle = resolve_bundle(bundle)
    manifest, _ = open_manifest(bundle, trusted)
    graphs = tuple(graph or manifest.needed_graphs)
    if unknown := [name for name in graphs if name not in manifest.graphs]:
        raise UsageError(
            f"--graph {unknown[0]}: this bundle has none of that name, expected one of {', '.join(manifest.graphs)}",
            fix=f"flamest-export profile DIR --graph {manifest.needed_graphs[0]}",
        )
    request = ProfileRequest(bundle, names, graphs, batch, runs, threads, detailed, out, trusted)
    with progress_bar("profiling", len(graphs) * len(names), unit="graphs") as progress:
        figures = run_profile(request, progress)
    if not as_json:
        show_profile(figures, layers, named=bool(backend))
        if out is not None:
            print(f"\nthe runtimes' own files are in {out}")
    return {"bundle": str(bundle), "fingerprint": manifest.fingerprint, **figures}


def show_profile(figures: Mapping[str, Any], layers: int, *, named: bool) -> None:
    """Print the figures; ``named``: the backends were, so that one that does not run here is of interest."""
    for name, found in figures["backends"].items():
        print(f"\n{name}: a clip by stages, one at a time")
        for stage, row in found["stages"].items():
            print(f"  {stage:12} {row['ms']:9.2f} ms {row['share']:7.1%}")
        for graph, row in found["graphs"].items():
            _show_graph(name, graph, row, layers)
    for name, refused in figures["refused"].items():
        if not named:
            print(f"not here: {name}: {refused['message'].splitlines()[-1].strip()}")
            continue
        print(f"\n{name} does not run here: {refused['message']}")
        if refused["fix"]:
            print(f"  fix: {refused['fix']}")


def _show_graph(backend: str, graph: str, row: Mapping[str, Any], layers: int) -> None:
    sizes = ", ".join(f"{word} {size}" for word, size in row["sizes"].items())
    print(f"\n{backend}, graph '{graph}' ({row['precision']}) on {row['where']}: {sizes}")
    print(f"  a run {row['ms']:.2f} ms{_arithmetic(row)}")
    memory = ", ".join(f"{what} {mb:.1f}" for what, mb in row["memory_mb"].items() if mb is not None)
    print(f"  memory, MB: {memory}")
    if row["trtexec"]:
        print(f"  the same engine by TensorRT's own tool:\n    {row['trtexec']}")
    if row["note"]:
        print(f"  note: {row['note']}")
    print(f"  {row['profiler']}:")
    print(f"  {'operator':32} {'layers':>6} {'ms':>9} {'share':>7}")
    for each in row["operators"][:layers]:
        print(f"  {each['operator']:32.32} {each['layers']:6} {each['ms']:9.3f} {each['share']:7.1%}")
    print(f"  {'longest layers':48} {'ms':>9} {'share':>7}")
    for each in row["layers"][:layers]:
        about = each["detail"] or each["operator"]
        print(f"  {each['name']:48.48} {each['ms']:9.3f} {each['share']:7.1%}  {about}")


def _arithmetic(row: Mapping[str, Any]) -> str:
    if not row["gflop"]:
        return ""
    done = f", {row['gflop']:.2f} GFLOP in it: {row['gflops']:.0f} GFLOP/s"
    if row["of_peak"] is None:
        return done
    return f"{done}, {row['of_peak']:.0%} of a large {row['precision']} matmul's {row['peak_gflops']:.0f}"
