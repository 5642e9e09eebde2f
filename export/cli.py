"""``flamest-export``: from published weights to a bundle that silos extract features with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.console import command
from ..base.errors import UsageError
from ..runtime.manifest import CrossAttention
from .sources import DEFAULT_BLIP, DEFAULT_SLOW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..runtime.manifest import GraphParity, Manifest

app = typer.Typer(add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one machine-readable JSON object as the last line.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Cores to use; all when not given.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The bundle folder.")]

READINGS: tuple[CrossAttention, ...] = ("bidirectional", "causal-last", "causal-first")


@app.callback(invoke_without_command=True)
@command
def export(
    context: typer.Context,
    backend: Annotated[str | None, typer.Option(help="onnx. (tensorrt is not built by this version.)")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The bundle folder to make.")] = None,
    blip: Annotated[
        str,
        typer.Option(
            metavar="SRC",
            help="The captioner: a hub id (OWNER/MODEL[@REVISION]), a folder with config.json, model.safetensors "
            "and tokenizer.json, random:full, or random:tiny.",
        ),
    ] = DEFAULT_BLIP,
    slow: Annotated[
        str,
        typer.Option(
            metavar="SRC",
            help="The Slow network: slow_r50 (PyTorchVideo's published weights), a SLOW_8x8_R50 checkpoint file "
            "(.safetensors, .pth, .pyth), random:full, or random:tiny.",
        ),
    ] = DEFAULT_SLOW,
    precision: Annotated[str, typer.Option(help="fp32. (Others are not built by this version.)")] = "fp32",
    cross_attention: Annotated[
        str,
        typer.Option(
            help="How frame and caption become one vector: bidirectional ([CLS], every token sees every other), "
            "causal-last (last token, decoder's mask), causal-first ([CLS], decoder's mask: blind to the caption)."
        ),
    ] = "bidirectional",
    extraction_seed: Annotated[
        int, typer.Option(min=0, help="Decides which keyframe of a clip is captioned; part of the fingerprint.")
    ] = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any] | None:
    """Build a bundle: the frozen BLIP and Slow networks as ONNX graphs in one folder.

    Every silo of a federation extracts its features with the same bundle. The export ends with a
    comparison of each graph with PyTorch on the same weights; when one is further off than 1e-4, or
    a caption differs, no bundle is left and the exit code is 65.

    random:full and random:tiny are seeded weights for tests, measurements and the demo: full has
    the published architecture, tiny a small one with the same outputs. A seed may follow, as in
    random:tiny:7.

    Examples:

      flamest-export --backend onnx --out bundle

      flamest-export --backend onnx --blip random:tiny --slow random:tiny --out tiny-bundle

      flamest-export inspect bundle
    """
    if context.invoked_subcommand is not None:
        return None
    _check_choices(backend, precision, cross_attention)
    if out is None:
        raise UsageError("no folder given for the bundle: expected --out DIR", fix=_EXAMPLE)
    from ..base.progress import progress_bar
    from .bundle import PHASES, ExportRequest, export_bundle
    from .libraries import quiet_libraries, torch_threads

    reading = next(known for known in READINGS if known == cross_attention)
    request = ExportRequest(blip, slow, out, reading, extraction_seed, threads)
    with progress_bar("exporting", PHASES, unit="steps") as progress, quiet_libraries(), torch_threads(threads):
        done = export_bundle(request, progress)
    manifest = done.manifest
    if not as_json:
        print(f"{out}: bundle {manifest.fingerprint[:16]}, {done.seconds:.0f} s")
        _show_parity(manifest.parity.graphs, manifest.parity.captions)
    return {
        "bundle": str(out),
        "fingerprint": manifest.fingerprint,
        "parameters": {part: source.parameters for part, source in manifest.sources.items()},
        "parameters_tied": {part: source.parameters_tied for part, source in manifest.sources.items()},
        "parity": _parity(manifest.parity.graphs),
        "captions_equal": manifest.parity.captions_equal,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "seconds": round(done.seconds, 1),
    }


@app.command("inspect")
@command
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> dict[str, Any]:
    """Say what a bundle is, from its manifest alone. Needs no PyTorch and no runtime."""
    import msgspec

    from ..runtime.manifest import read_manifest

    manifest = read_manifest(bundle)
    if not as_json:
        _show_manifest(bundle, manifest)
    return {
        "bundle": str(bundle),
        "fingerprint": manifest.fingerprint,
        "width": manifest.width,
        **msgspec.to_builtins(manifest),
    }


@app.command("verify")
@command
def verify(
    bundle: BundleArgument,
    blip: Annotated[str | None, typer.Option(metavar="SRC", help="The captioner it was exported from.")] = None,
    slow: Annotated[str | None, typer.Option(metavar="SRC", help="The Slow network it was exported from.")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Check every file of a bundle against its manifest, then compare its graphs with PyTorch again.

    The comparison needs the weights: those of random:* sources are made again, published ones are
    taken from this machine's caches or the network, others are given with --blip and --slow.
    """
    from ..base.progress import progress_bar
    from .libraries import quiet_libraries, torch_threads
    from .verify import PHASES, verify_bundle

    with progress_bar("verifying", PHASES, unit="steps") as progress, quiet_libraries(), torch_threads(threads):
        done = verify_bundle(bundle, progress, blip=blip, slow=slow, threads=threads)
    if not as_json:
        print(f"{bundle}: {len(done.manifest.files)} files are those of the manifest")
        _show_parity(done.graphs, done.manifest.parity.captions)
        for part, advice in done.not_compared.items():
            print(f"{part}: not compared with PyTorch, its weights are not at hand. Give them: {advice}")
    return {
        "bundle": str(bundle),
        "fingerprint": done.manifest.fingerprint,
        "files": len(done.manifest.files),
        "parity": _parity(done.graphs),
        "captions_equal": done.captions_equal,
        "not_compared": done.not_compared,
        "seconds": round(done.seconds, 1),
    }


@app.command("bench")
@command
def bench(
    bundle: BundleArgument,
    repeats: Annotated[int, typer.Option(min=3, help="Runs of each graph.")] = 20,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Measure each graph on this machine: milliseconds per run at batch 1."""
    import msgspec

    from .bench import time_graphs

    timings = time_graphs(bundle, repeats=repeats, threads=threads)
    if not as_json:
        print(f"{'graph':10} {'min ms':>8} {'p50 ms':>8} {'p95 ms':>8}  sizes")
        for name, timing in timings.items():
            sizes = ", ".join(f"{word} {size}" for word, size in timing.sizes.items())
            print(f"{name:10} {timing.min_ms:8.1f} {timing.p50_ms:8.1f} {timing.p95_ms:8.1f}  {sizes}")
    return {"bundle": str(bundle), "threads": threads, "graphs": msgspec.to_builtins(timings)}


@app.command("doctor")
@command
def doctor(as_json: JsonOption = False) -> dict[str, Any]:
    """Say what this machine can build, and what to type where something is missing."""
    import msgspec

    from .doctor import can_build_onnx, check_machine

    checks = check_machine(Path.cwd())
    if not as_json:
        for check in checks:
            print(f"{'ok     ' if check.ok else 'missing'} {check.name}: {check.found}")
            if check.fix:
                print(f"          fix: {check.fix}")
    return {
        "can_build": {"onnx": can_build_onnx(checks), "tensorrt": False},
        "checks": msgspec.to_builtins(checks),
    }


_EXAMPLE = "flamest-export --backend onnx --out DIR"


def _check_choices(backend: str | None, precision: str, cross_attention: str) -> None:
    if backend is None:
        raise UsageError("no backend given: expected --backend onnx", fix=_EXAMPLE)
    if backend == "tensorrt":
        raise UsageError("--backend tensorrt: this version builds ONNX bundles only", fix=_EXAMPLE)
    if backend != "onnx":
        raise UsageError(f"--backend {backend}: no such backend, expected onnx", fix=_EXAMPLE)
    if precision in ("fp16", "bf16", "int8"):
        raise UsageError(f"--precision {precision}: this version builds fp32 bundles only", fix=_EXAMPLE)
    if precision != "fp32":
        raise UsageError(f"--precision {precision}: no such precision, expected fp32", fix=_EXAMPLE)
    if cross_attention not in READINGS:
        raise UsageError(f"--cross-attention {cross_attention}: expected one of {', '.join(READINGS)}")


def _parity(graphs: Mapping[str, GraphParity]) -> dict[str, dict[str, float]]:
    return {name: {"max_abs": graph.max_abs, "max_rel": graph.max_rel} for name, graph in graphs.items()}


def _show_parity(graphs: Mapping[str, GraphParity], captions: int) -> None:
    for name, graph in graphs.items():
        print(f"  {name}: largest relative error against PyTorch {graph.max_rel:.1e}")
    if "text" in graphs:
        print(f"  captions: {captions} of {captions} equal to PyTorch's")


def _show_manifest(bundle: Path, manifest: Manifest) -> None:
    print(f"{bundle}: {manifest.extractor}, {manifest.precision}, {manifest.backend}, made {manifest.created}")
    print(f"  fingerprint   {manifest.fingerprint}")
    print(f"  features      {manifest.vlm.width} + {manifest.cnn.width} = {manifest.width} numbers per clip")
    print(f"  reading       {manifest.vlm.reading}, extraction seed {manifest.extraction_seed}")
    rule = manifest.keyframes
    print(f"  keyframes     {rule.count} of {rule.candidates} at {rule.preprocessing.size} px ({rule.space})")
    for part, source in manifest.sources.items():
        print(f"  {part:13} {source.name} ({source.revision}), licence: {source.licence}")
        print(
            f"                {source.parameters:,} parameters as the paper counts, {source.parameters_tied:,} stored"
        )
    for name, graph in manifest.graphs.items():
        size, parity = manifest.files[graph.file].bytes / 1e6, manifest.parity.graphs[name]
        print(f"  {name:13} {graph.file}, {size:.1f} MB, opset {graph.opset}, error {parity.max_rel:.1e}")
    print("  built with    " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))


def main() -> None:
    app()
