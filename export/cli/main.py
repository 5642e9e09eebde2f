"""``flamest-export``: from published weights to a bundle that silos extract features with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.errors import UsageError
from ...base.options import JsonOption, ThreadsOption
from ..networks.extractors import DEFAULT_EXTRACTOR, find_extractor
from ..precision.choice import choose_precision
from .bench import bench
from .checks import check, doctor, gpu_check
from .dry_run import DryRunOption, dry_run
from .engine_options import (
    HardwareCompatOption,
    OptLevelOption,
    PlanCacheOption,
    PlansOption,
    StripWeightsOption,
    Tf32Option,
    TimingCacheOption,
    VersionCompatibleOption,
    WorkspaceOption,
)
from .engines import add_plans, plans, plans_outlook, show_supplied, site_for_export, supplied_rows
from .inspect import extractors, inspect, verify
from .options import (
    EXAMPLE,
    MOST_CAPTIONED,
    READINGS,
    BlipOption,
    CalibrationOption,
    CheckOption,
    ClipOption,
    I3dOption,
    PrecisionOption,
    Resnet3dOption,
    SlowOption,
    VideomaeOption,
    check_choices,
    check_uses,
    choose_sources,
)
from .output import parity_rows, show_notes, show_parity
from .sign import keygen, sign
from .weights import verify_weights

app = typer.Typer(add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("extractors")(extractors)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("doctor")(doctor)
app.command("plans")(plans)
app.command("keygen")(keygen)
app.command("sign")(sign)
app.command("check")(check)
app.command("bench")(bench)
app.command("verify-weights")(verify_weights)
app.command("gpu-check")(gpu_check)


@app.callback(invoke_without_command=True)
@command
def export(
    context: typer.Context,
    backend: Annotated[
        str | None,
        typer.Option(
            help="onnx: graphs that every backend runs. tensorrt: the same, with plans for this machine's GPU."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The bundle folder to make.")] = None,
    extractor: Annotated[
        str, typer.Option(metavar="NAME", help="What turns clips into numbers; flamest-export extractors lists them.")
    ] = DEFAULT_EXTRACTOR,
    weights: Annotated[
        str,
        typer.Option(
            metavar="SRC",
            help="The source of every network that is not given one of its own: published, miniworld (small networks "
            "that this project trained), random:full or random:tiny.",
        ),
    ] = "published",
    blip: BlipOption = None,
    clip: ClipOption = None,
    slow: SlowOption = None,
    i3d: I3dOption = None,
    resnet3d: Resnet3dOption = None,
    videomae: VideomaeOption = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Captions that CLIP retrieves: a JSON object {class: caption}, or a caption a line."
        ),
    ] = None,
    captioned_frames: Annotated[
        int,
        typer.Option(
            metavar="N",
            help=f"Keyframes of a clip that are captioned, 1 to {MOST_CAPTIONED}; their embeddings are averaged.",
        ),
    ] = 1,
    precision: PrecisionOption = None,
    calibration: CalibrationOption = None,
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
    with_plans: PlansOption = None,
    opt_level: OptLevelOption = None,
    hardware_compat: HardwareCompatOption = None,
    version_compatible: VersionCompatibleOption = None,
    strip_weights: StripWeightsOption = None,
    tf32: Tf32Option = None,
    workspace_mb: WorkspaceOption = None,
    timing_cache: TimingCacheOption = None,
    plan_cache: PlanCacheOption = None,
    checked: CheckOption = False,
    dry: DryRunOption = False,
    as_json: JsonOption = False,
) -> dict[str, Any] | None:
    """Build a bundle: the frozen networks of an extractor as ONNX graphs in one folder.

    Every silo of a federation extracts its features with the same bundle. The export ends with a
    comparison of each graph with PyTorch on the same weights; when one is further off than its
    precision allows (fp32: 1e-4, and every caption equal), no bundle is left and the exit code is 65.

    A lower precision is faster and smaller and changes the numbers a little: docs/precision.md says
    by how much, and which runs where. Features of two precisions are kept apart in a store.

    random:full and random:tiny are seeded weights for tests, measurements and the demo: full has
    the published architecture, tiny a small one with the same outputs. A seed may follow, as in
    random:tiny:7.

    Examples:

      flamest-export --backend onnx --out bundle

      flamest-export --backend onnx --extractor blip+i3d --weights random:tiny --out tiny-bundle

      flamest-export --backend tensorrt --hardware-compat ampere+ --out bundle

      flamest-export --backend onnx --precision int8 --calibration my-clips --out bundle

      flamest-export inspect bundle
    """
    if context.invoked_subcommand is not None:
        return None
    check_choices(backend, cross_attention)
    entry = find_extractor(extractor)
    choice = choose_precision(precision or (), entry, backend or "onnx")
    if out is None and not dry:
        raise UsageError("no folder given for the bundle: expected --out DIR", fix=EXAMPLE)
    given = {"blip": blip, "clip": clip, "slow": slow, "i3d": i3d, "resnet3d": resnet3d, "videomae": videomae}
    check_uses(entry, given, cross_attention, captions, captioned_frames)
    if out is None or dry:
        outlook = plans_outlook(context, backend)
        choice = choose_precision(precision or (), entry, backend or "onnx", outlook.capability)
        return dry_run(entry, choose_sources(entry, weights, given), out, choice, outlook, as_json=as_json)
    if site := site_for_export(context, backend, out):
        capability = site.facts.gpu.compute_capability if site.facts.gpu else ""
        choice = choose_precision(precision or (), entry, backend or "onnx", capability)
    import msgspec

    from ...base.progress import progress_bar
    from ..bundle import ExportRequest, export_bundle, steps_of
    from ..libraries import quiet_libraries, torch_threads
    from ..precision.calibration import own_footage
    from ..precision.lowering import calibration_notes, plan_lowering

    own_clips = None if calibration is None else own_footage(calibration)
    notes = (*choice.notes, *calibration_notes(choice, own_clips))
    if not as_json:
        show_notes(notes)
    request = ExportRequest(
        extractor=entry,
        sources=choose_sources(entry, weights, given),
        out=out,
        backend=backend or "onnx",
        cross_attention=next(known for known in READINGS if known == cross_attention),
        captioned_frames=captioned_frames,
        captions=captions,
        extraction_seed=extraction_seed,
        threads=threads,
        check=checked,
        lowering=plan_lowering(choice, backend or "onnx", own_clips, threads),
        own_clips=own_clips,
    )
    steps = steps_of(entry)
    with progress_bar("exporting", steps, unit="steps") as progress, quiet_libraries(), torch_threads(threads):
        done = export_bundle(request, progress)
    manifest, supplied = (done.manifest, []) if site is None else add_plans(out, site)
    if not as_json:
        print(f"{out}: bundle {manifest.fingerprint[:16]}, {done.seconds:.0f} s")
        show_parity(manifest.parity)
        show_supplied(supplied)
    return {
        "bundle": str(out),
        "extractor": manifest.extractor,
        "width": manifest.width,
        "fingerprint": manifest.fingerprint,
        "precision": manifest.precision,
        "notes": list(notes),
        "parameters": {part: source.parameters for part, source in manifest.sources.items()},
        "parameters_tied": {part: source.parameters_tied for part, source in manifest.sources.items()},
        "parity": parity_rows(manifest.parity.graphs),
        "captions_equal": manifest.parity.captions_equal == manifest.parity.captions,
        "chain": msgspec.to_builtins(manifest.parity.chain),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "plans": supplied_rows(supplied),
        "seconds": round(done.seconds, 1),
    }


def main() -> None:
    app()
