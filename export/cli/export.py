"""``flamest-export build``, which is ``flamest-export`` without a command: build a bundle."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...base.console import command
from ...base.options import JsonOption, takes_records
from ..engine_options import ENGINE_OPTIONS, requested_engines
from ..request import ExportOptions, read_request
from .dry_run import dry_run
from .engines import engine_rows, show_engines
from .output import int8_share, parity_rows, show_int8, show_notes, show_parity

if TYPE_CHECKING:
    from ...runtime.bundle.graph_records import EngineOptions


@command
@takes_records
def export(context: typer.Context, options: ExportOptions, as_json: JsonOption = False) -> dict[str, Any] | None:
    """Turn published models into a bundle: the frozen networks that every silo of a federation extracts features with.

    Build it once, at the centre, with flamest-export build; then copy the folder to every silo.

    Without a command the options are those of build: flamest-export --backend onnx --out DIR.
    """
    if context.invoked_subcommand is not None:
        return None
    return _build(context, options, as_json=as_json)


@command
@takes_records
def build(context: typer.Context, options: ExportOptions, as_json: JsonOption = False) -> dict[str, Any]:
    """Build a bundle: the frozen networks of an extractor as ONNX graphs in one folder.

    Every silo of a federation extracts its features with the same bundle. The export ends with a
    comparison of each graph with PyTorch on the same weights; when one is further off than its
    precision allows (fp32: 1e-4, and every caption equal), no bundle is left and the exit code is 65.

    A lower precision is faster and smaller and changes embeddings a little: docs/explanation/precision.md says
    by how much, and which runs where. Features of two precisions are kept apart in a store.

    random:full and random:tiny are seeded weights for tests, measurements and the demo: full has
    the published architecture, tiny a small one with the same outputs. A seed may follow, as in
    random:tiny:7.

    Examples:

      flamest-export build --backend onnx --out bundle

      flamest-export build --backend onnx --extractor slow --out bundle

      flamest-export build --backend tensorrt --out bundle

      flamest-export build --backend onnx --precision int8 --out bundle

      flamest-export inspect bundle

    The word build may be left out.
    """
    return _build(context, options, as_json=as_json)


def _build(context: typer.Context, options: ExportOptions, *, as_json: bool) -> dict[str, Any]:
    import msgspec

    engines = requested_engines(options.backend, options.with_plans, options.engines)
    request = read_request(options, "" if engines is None else engines.capability)
    if options.dry_run:
        return dry_run(request, engines, as_json=as_json)
    if engines is not None:
        if request.precision.by_default and options.engines.tf32 is None:  # in what is left in fp32
            engines = dataclasses.replace(engines, options=msgspec.structs.replace(engines.options, tf32=True))
        fix = _fix_without_gpu(_other_options(context), request.out, engines.options)
        request = dataclasses.replace(request, target=engines.target(fix=fix))
    from ..bundle import build_bundle
    from ..precision.lowering import calibration_notes

    notes = (*request.precision.notes, *calibration_notes(request.precision, request.own_clips))
    if not as_json:
        show_notes(notes)
    built = build_bundle(request)
    manifest = built.manifest
    if not as_json:
        print(f"{request.out}: bundle {manifest.fingerprint[:16]}, {built.seconds:.0f} s")
        show_int8(manifest)
        show_parity(manifest.parity)
        show_notes(manifest.notes[len(request.precision.notes) :])
        show_engines(built.engines)
    return {
        "bundle": str(request.out),
        "extractor": manifest.extractor,
        "width": manifest.width,
        "fingerprint": manifest.fingerprint,
        "precision": manifest.precision,
        "notes": [*notes, *manifest.notes[len(request.precision.notes) :]],
        "int8": {name: msgspec.to_builtins(graph.int8) for name, graph in manifest.graphs.items() if graph.int8},
        "int8_share": int8_share(manifest),
        "parameters": {part: source.parameters for part, source in manifest.sources.items()},
        "parameters_tied": {part: source.parameters_tied for part, source in manifest.sources.items()},
        "parity": parity_rows(manifest.parity.graphs),
        "captions_equal": manifest.parity.captions_equal == manifest.parity.captions,
        "chain": msgspec.to_builtins(manifest.parity.chain),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "plans": engine_rows(built.engines),
        "seconds": round(built.seconds, 1),
    }


def _fix_without_gpu(words: list[str], out: Path, options: EngineOptions) -> str:
    """The fix on a machine without a GPU: graphs here, engines on the machine that runs them.

    ``words``: the other options of this export, as typed.
    """
    from ..engines import engines_command

    now = shlex.join(["flamest-export", "--backend", "tensorrt", "--no-plans", *words])
    return (
        f"here, now: {now}\n"
        f"       then copy the folder to the machine with the GPU that will run it, and type there: "
        f"pip install 'flamest[agent,tensorrt]' && {engines_command(out, options)}"
    )


def _other_options(context: typer.Context) -> list[str]:
    """The options that were typed, except ``--backend`` and those of engines, to be typed again."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in ("backend", "as_json", *ENGINE_OPTIONS):
            continue
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            value = context.params[name]
            values = value if isinstance(value, list | tuple) else [value]
            for each in values:
                words += _typed(parameter, each)
    return words


def _typed(parameter: Any, value: Any) -> list[str]:
    """One option as it is typed: ``--name value``, or the flag alone."""
    if isinstance(value, bool):
        return [parameter.opts[0] if value else parameter.secondary_opts[0]]
    return [str(parameter.opts[0]), str(value)]
