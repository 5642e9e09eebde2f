"""``flamest-export``: from published weights to a bundle that silos extract features with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.console import command
from ..base.errors import MissingExtra, UsageError
from .cli_bench import bench
from .cli_check import check
from .cli_doctor import doctor
from .cli_dry_run import DryRunOption, dry_run
from .cli_gpu import gpu_check
from .cli_options import (
    EXAMPLE,
    MOST_CAPTIONED,
    READINGS,
    BlipOption,
    BundleArgument,
    CalibrationOption,
    CheckOption,
    ClipOption,
    I3dOption,
    JsonOption,
    PrecisionOption,
    Resnet3dOption,
    SlowOption,
    ThreadsOption,
    TrustedKeyOption,
    VideomaeOption,
    check_choices,
    check_uses,
    choose_sources,
)
from .cli_plans import (
    HardwareCompatOption,
    OptLevelOption,
    PlanCacheOption,
    PlansOption,
    StripWeightsOption,
    Tf32Option,
    TimingCacheOption,
    VersionCompatibleOption,
    WorkspaceOption,
    add_plans,
    plans,
    plans_outlook,
    show_supplied,
    site_for_export,
    supplied_rows,
)
from .cli_show import extractor_row, show_extractors, show_manifest, show_notes, show_parity, show_signers, signer_ids
from .cli_sign import keygen, sign
from .cli_weights import verify_weights
from .extractors import DEFAULT_EXTRACTOR, EXTRACTORS, count_networks, count_parameters, find_extractor
from .precision.choice import choose_precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..runtime.parity_records import GraphParity
    from ..runtime.signature import PublicKey

app = typer.Typer(add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
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

    from ..base.progress import progress_bar
    from .bundle import ExportRequest, export_bundle, steps_of
    from .libraries import quiet_libraries, torch_threads
    from .precision.footage import own_footage
    from .precision.lowering import plan_lowering

    if not as_json:
        show_notes(choice.notes)
    own_clips = None if calibration is None else own_footage(calibration)
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
        "notes": list(choice.notes),
        "parameters": {part: source.parameters for part, source in manifest.sources.items()},
        "parameters_tied": {part: source.parameters_tied for part, source in manifest.sources.items()},
        "parity": _parity(manifest.parity.graphs),
        "captions_equal": manifest.parity.captions_equal == manifest.parity.captions,
        "chain": msgspec.to_builtins(manifest.parity.chain),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "plans": supplied_rows(supplied),
        "seconds": round(done.seconds, 1),
    }


@app.command("extractors")
@command
def extractors(as_json: JsonOption = False) -> dict[str, Any]:
    """List the extractors with frames, numbers per clip and parameters, beside what the paper prints.

    Parameters are those of the published networks, counted from their architectures; BLIP's word
    embedding and output projection, which are one matrix, count twice, as in the paper.
    """
    from .libraries import quiet_libraries

    with quiet_libraries():
        counts, networks = count_parameters(), count_networks()
    rows = [extractor_row(entry, counts[name]) for name, entry in EXTRACTORS.items()]
    if not as_json:
        show_extractors(rows)
        print(f"BLIP with each stored value once: {networks['blip'].stored:,}")
        print(f"Student of the knowledge distillation (ResNet-18): {networks['resnet18'].parameters:,}")
    return {
        "extractors": rows,
        "networks": {
            name: {"parameters": count.parameters, "stored": count.stored} for name, count in networks.items()
        },
    }


@app.command("inspect")
@command
def inspect(
    bundle: BundleArgument, trusted_key: TrustedKeyOption = None, as_json: JsonOption = False
) -> dict[str, Any]:
    """Say what a bundle is, from its manifest alone, and who signed it. Needs no PyTorch and no runtime.

    Files other than the manifest are not looked at: flamest-export verify does that.
    """
    import msgspec

    from ..runtime.bundle import open_manifest
    from ..runtime.manifest import read_manifest
    from ..runtime.signature import read_trusted_keys

    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    signers: tuple[PublicKey, ...] | None
    try:
        manifest, signers = open_manifest(bundle, trusted)
    except MissingExtra:  # the base install has nothing to check signatures with
        if trusted:
            raise
        manifest, signers = read_manifest(bundle), None
    if not as_json:
        show_manifest(bundle, manifest, signers, trusted)
    return {
        "bundle": str(bundle),
        "fingerprint": manifest.fingerprint,
        "width": manifest.width,
        "precision": manifest.precision,
        **signer_ids(signers, trusted),
        **msgspec.to_builtins(manifest),
    }


@app.command("verify")
@command
def verify(
    bundle: BundleArgument,
    blip: BlipOption = None,
    clip: ClipOption = None,
    slow: SlowOption = None,
    i3d: I3dOption = None,
    resnet3d: Resnet3dOption = None,
    videomae: VideomaeOption = None,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Check every file of a bundle against its manifest, then compare its graphs with PyTorch again.

    The comparison needs the weights: those of random:* sources are made again, published ones are
    taken from this machine's caches or the network, others are given as they were for the export.
    """
    import msgspec

    from ..base.progress import progress_bar
    from ..runtime.parity_records import Parity
    from ..runtime.signature import read_trusted_keys
    from .libraries import quiet_libraries, torch_threads
    from .verify import PHASES, verify_bundle

    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")

    named = {"blip": blip, "clip": clip, "slow": slow, "i3d": i3d, "resnet3d": resnet3d, "videomae": videomae}
    given = {name: source for name, source in named.items() if source is not None}
    with progress_bar("verifying", PHASES, unit="steps") as progress, quiet_libraries(), torch_threads(threads):
        done = verify_bundle(bundle, progress, given=given, threads=threads, trusted=trusted)
    if not as_json:
        print(f"{bundle}: {len(done.manifest.files)} files are those of the manifest")
        print(f"  signatures    {show_signers(done.signers, trusted)}")
        show_parity(Parity(done.graphs, done.captions_equal, done.captions, done.chain))
        for part, advice in done.not_compared.items():
            print(f"{part}: not compared with PyTorch, its weights are not at hand. Give them: {advice}")
    return {
        "bundle": str(bundle),
        "fingerprint": done.manifest.fingerprint,
        "files": len(done.manifest.files),
        **signer_ids(done.signers, trusted),
        "parity": _parity(done.graphs),
        "captions_equal": done.captions_equal == done.captions if done.captions else None,
        "chain": msgspec.to_builtins(done.chain),
        "not_compared": done.not_compared,
        "seconds": round(done.seconds, 1),
    }


def _parity(graphs: Mapping[str, GraphParity]) -> dict[str, dict[str, float]]:
    return {
        name: {"max_abs": graph.max_abs, "max_rel": graph.max_rel, "min_cosine": graph.min_cosine}
        for name, graph in graphs.items()
    }


def main() -> None:
    app()
