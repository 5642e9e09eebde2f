"""``flamest-export bench``: every backend of this machine on the same graphs and clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.errors import UsageError
from ...base.options import JsonOption, ThreadsOption, TrustedKeyOption
from ...runtime.backends.options import BACKENDS
from .options import BundleArgument

BF16 = ":bf16"


@command
def bench(
    bundle: BundleArgument,
    videos: Annotated[
        Path | None, typer.Option("--videos", metavar="DIR", help="A folder of clips; without it some are rendered.")
    ] = None,
    clips: Annotated[int, typer.Option("--clips", min=1, help="How many clips.")] = 8,
    repeats: Annotated[int, typer.Option(min=3, help="Runs of each graph.")] = 20,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help=f"Measure this one only; may be given several times. Of {', '.join(BACKENDS)}, and openvino:bf16 "
            "(an fp32 bundle computed in bf16).",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch",
            min=1,
            metavar="N",
            help="Clips in one run of a graph; may be given several times. That of extraction when not given.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="With --json: each clip's caption and vectors too, to compare bundles.")
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Measure every backend that this machine has, side by side: times per graph and stage, clips a second, memory.

    Each backend runs in a process of its own, and their runs are interleaved, so that a disturbance of the
    machine affects all alike. Results are compared with those of ONNX Runtime's CPU provider. A backend
    that does not run here is listed with the reason and the fix; when none runs, the command fails (nothing_measured).
    Graphs are measured at the batch that extraction uses on that backend.
    """
    from ...base.progress import progress_bar
    from ...runtime.bundle.opening import open_manifest
    from ...runtime.bundle.packaged import resolve_bundle
    from ...runtime.bundle.signature import read_trusted_keys
    from ..bench.comparison import BenchRequest, run_bench

    names = tuple(backend or BACKENDS)
    check_backends(names)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    bundle = resolve_bundle(bundle)
    manifest, _ = open_manifest(bundle, trusted)
    request = BenchRequest(bundle, names, repeats, clips, videos, threads, trusted, vectors, tuple(batch or ()))
    with progress_bar("measuring", len(manifest.needed_graphs) + clips, unit="steps") as progress:
        figures = run_bench(request, progress)
    if not as_json:
        show_bench(figures)
    return {"bundle": str(bundle), "fingerprint": manifest.fingerprint, **figures}


def check_backends(names: tuple[str, ...]) -> None:
    known = (*BACKENDS, f"openvino{BF16}")
    for name in names:
        if name not in known:
            raise UsageError(
                f"--backend {name}: no such backend, expected one of {', '.join(known)}",
                fix=f"flamest-export bench DIR --backend {known[-2]}",
            )


def show_bench(figures: Mapping[str, Any]) -> None:
    made = "rendered here" if figures["rendered"] else "of your folder"
    print(f"{figures['clips']} clips {made}, {figures['repeats']} runs of each graph, backends interleaved")
    for name, found in figures["backends"].items():
        print(f"\n{name} ({found['precision']}): {', '.join(sorted(set(found['where'].values())))}")
        gpu = "" if found["gpu_mb"] is None else f", GPU {found['gpu_mb']:.0f} MB"
        pipeline = found["pipeline"]
        print(
            f"  extraction: {pipeline['clips_per_second']:.2f} clips a second ({pipeline['clips']} clips, batch "
            f"{pipeline['batch']}, {pipeline['readers']} readers)"
        )
        print(
            f"  one at a time: {found['clips_per_second']:.2f} clips a second, a clip p50 "
            f"{found['clip']['p50_ms']:.1f} ms, p95 {found['clip']['p95_ms']:.1f}; peak {found['peak_mb']:.0f} MB, "
            f"decoder {found['decoder_peak_mb']:.0f} MB{gpu}"
        )
        print(f"  {'stage':12} {'p50 ms':>8} {'p95 ms':>8} {'peak MB':>8}")
        for stage, row in found["stages"].items():
            print(f"  {stage:12} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f} {row['peak_mb']:8.0f}")
        print(f"  {'graph':12} {'p50 ms':>8} {'p95 ms':>8} {'peak MB':>8}  sizes, difference to ONNX Runtime CPU")
        for graph, rows in found["graphs"].items():
            for row in rows["batches"].values():
                _show_graph(graph, row)
        compared = found["beside_reference"]
        if compared:
            cosines = ", ".join(f"{part} {value:.6f}" for part, value in compared["min_cosine"].items())
            print(f"  captions equal: {compared['captions_equal']} of {compared['captions']}; least cosine: {cosines}")
    for name, refused in figures["refused"].items():
        print(f"\n{name} does not run here: {refused['message']}")
        if refused["fix"]:
            print(f"  fix: {refused['fix']}")


def _show_graph(graph: str, row: Mapping[str, Any]) -> None:
    if "problem" in row:
        print(f"  {graph:12} batch {row['batch']} does not run: {row['problem']}")
        return
    sizes = ", ".join(f"{word} {size}" for word, size in row["sizes"].items())
    compared = row["beside_reference"]
    other = f"; {compared['max_rel']:.1e}, cosine {compared['min_cosine']:.6f}" if compared else ""
    print(f"  {graph:12} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f} {row['peak_mb']:8.0f}  {sizes}{other}")
