"""From the options of an export to its ExportRequest, with all that is refused before any work."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.errors import UsageError
from ..base.options import ThreadsOption
from ..runtime.bundle.manifest import CrossAttention
from .engine_options import EngineFlags, WithEnginesOption
from .networks.extractors import DEFAULT_EXTRACTOR, ExtractorEntry, find_extractor, own_extractor
from .source_options import WEIGHTS, SourceOptions, WeightsHashOption

if TYPE_CHECKING:
    from .bundle import ExportRequest
    from .encoder.settings import Encoder
    from .weights.source import WeightSource

ATTENTION_MODES: tuple[CrossAttention, ...] = ("bidirectional", "causal-last", "causal-first")
MAX_CAPTIONED_FRAMES = 8  # keyframes
BUNDLE, FEATURES = "Bundle", "Features (part of the fingerprint)"  # headings in --help
PRECISION = "Precision"
EXAMPLE = "flamest-export --backend onnx --out DIR"

PrecisionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        metavar="[GRAPH=]WORD",
        rich_help_panel=PRECISION,
        help="Precision of the graphs' matmuls and convolutions: fp32, fp16, bf16 or int8, for all graphs "
        "or for one of vision, text, words, clip, cnn. When not given fp32, and with --backend tensorrt bf16 "
        "(fp16 where the GPU has no bf16). "
        "Can be given several times: --precision int8 --precision text=fp32.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="DIR",
        rich_help_panel=PRECISION,
        help="A folder of your own clips, of which 32 at most are used: int8 gets the ranges of its values from three "
        "quarters of them and is judged on the others, and the bundle's embeddings are compared with fp32's on all. "
        "Without it, clips that the exporter draws.",
    ),
]


@dataclass(frozen=True)
class ExportOptions:
    """The command line of an export."""

    backend: Annotated[
        str | None,
        typer.Option(
            metavar="onnx|tensorrt",
            rich_help_panel=BUNDLE,
            help="Required. onnx: graphs that every backend runs. tensorrt: the same, with engines for this "
            "machine's GPU.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", rich_help_panel=BUNDLE, help="Required. The bundle folder to make."),
    ] = None
    extractor: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE.toml",
            rich_help_panel=BUNDLE,
            help="The networks that make a clip's embedding; flamest-export extractors lists them. FILE.toml: an image "
            "or video encoder of your own, whose code runs here and on no silo (docs/guides/own-encoder.md).",
        ),
    ] = DEFAULT_EXTRACTOR
    weights: Annotated[
        str,
        typer.Option(
            metavar="SRC",
            rich_help_panel=WEIGHTS,
            help="The source of every network that is not given one of its own: published, miniworld (small networks "
            "that come with the package), random:full or random:tiny.",
        ),
    ] = "published"
    sources: SourceOptions = field(default_factory=SourceOptions)
    weights_sha256: WeightsHashOption = None
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=FEATURES,
            help="Captions that CLIP retrieves: a JSON object {class: caption}, or text with one caption per line.",
        ),
    ] = None
    captioned_frames: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=FEATURES,
            help=f"Keyframes of a clip that are captioned, 1 to {MAX_CAPTIONED_FRAMES}; their embeddings are averaged.",
        ),
    ] = 1
    precision: PrecisionOption = None
    calibration: CalibrationOption = None
    cross_attention: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            rich_help_panel=FEATURES,
            help="How frame and caption become one vector: bidirectional ([CLS], every token sees every other), "
            "causal-last (last token, decoder's mask), causal-first ([CLS], decoder's mask: blind to the caption).",
        ),
    ] = "bidirectional"
    extraction_seed: Annotated[
        int,
        typer.Option(min=0, rich_help_panel=FEATURES, help="Decides which keyframe of a clip is captioned."),
    ] = 0
    threads: ThreadsOption = None
    with_plans: WithEnginesOption = None
    engines: EngineFlags = field(default_factory=EngineFlags)
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            rich_help_panel=BUNDLE,
            help="Check the graphs too as flamest-export check does; leave no bundle when one fails.",
        ),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=BUNDLE,
            help="Print what would be built, from which sources, its size, memory and downloads; build nothing.",
        ),
    ] = False


def read_request(options: ExportOptions, capability: str, encoder: Encoder | None = None) -> ExportRequest:
    """The request that ``options`` make; ``capability``: of the GPU that engines are built for, empty without one.

    ``encoder``: one that was made in Python, instead of ``options.extractor``.

    Raises UsageError for options that contradict each other, StorageError or DataError for a folder of
    clips that holds none.
    """
    from .bundle import ExportRequest
    from .precision.calibration import folder_clips
    from .precision.choice import choose_precision

    if options.backend is None:
        raise UsageError("no backend given: expected --backend onnx or --backend tensorrt", fix=EXAMPLE)
    if options.backend not in ("onnx", "tensorrt"):
        raise UsageError(f"--backend {options.backend}: no such backend, expected onnx or tensorrt", fix=EXAMPLE)
    mode = next((known for known in ATTENTION_MODES if known == options.cross_attention), None)
    if mode is None:
        expected = ", ".join(ATTENTION_MODES)
        raise UsageError(
            f"--cross-attention {options.cross_attention}: expected one of {expected}",
            fix=f"--cross-attention {ATTENTION_MODES[0]}, or leave it out",
        )
    entry = _entry(encoder or options.extractor)
    precision = choose_precision(options.precision or (), entry, options.backend, capability)
    if options.out is None and not options.dry_run:
        raise UsageError("no folder given for the bundle: expected --out DIR", fix=EXAMPLE)
    _check_uses(options, entry)
    return ExportRequest(
        extractor=entry,
        sources=_sources(options, entry),
        out=options.out or Path(),
        backend=options.backend,
        precision=precision,
        cross_attention=mode,
        captioned_frames=options.captioned_frames,
        captions=options.captions,
        extraction_seed=options.extraction_seed,
        threads=options.threads,
        check=options.check,
        own_clips=None if options.calibration is None else folder_clips(options.calibration),
    )


def _entry(extractor: str | Encoder) -> ExtractorEntry:
    """The extractor of that name, of that TOML file, or of an encoder that was made in Python."""
    if isinstance(extractor, str) and not extractor.endswith(".toml"):
        return find_extractor(extractor)
    from .encoder.settings import check_encoder, read_encoder

    return own_extractor(read_encoder(Path(extractor)) if isinstance(extractor, str) else check_encoder(extractor))


def _sources(options: ExportOptions, entry: ExtractorEntry) -> dict[str, WeightSource]:
    """Source of each network of the extractor."""
    from .weights.source import parse_common_source, parse_sha256, parse_source

    given, common = options.sources.given(), parse_common_source(options.weights)
    sources = {network: parse_source(network, given.get(network, common)) for network in entry.needed_networks}
    for network, sha256 in parse_sha256(options.weights_sha256 or ()).items():
        if network not in sources or sources[network].kind not in ("files", "hub", "zoo"):
            raise UsageError(
                f"--weights-sha256 {network}=…: this export reads no weights file of {network}",
                fix="leave it out, or give the network's file as its source",
            )
        sources[network] = replace(sources[network], sha256=sha256)
    return sources


def _check_uses(options: ExportOptions, entry: ExtractorEntry) -> None:
    """Refuse options that the extractor has no use for: they would be a misunderstanding."""
    for network, source in options.sources.given().items():
        if network not in entry.needed_networks:
            raise UsageError(
                f"--{network} {source}: extractor {entry.name} has no such network, expected only "
                f"{', '.join(f'--{name}' for name in entry.needed_networks)}",
                fix="flamest-export extractors",
            )
    mode, captions, frames = options.cross_attention, options.captions, options.captioned_frames
    if mode != ATTENTION_MODES[0] and entry.vlm != "blip":
        raise UsageError(
            f"--cross-attention {mode}: extractor {entry.name} encodes no caption with its frame",
            fix=f"flamest-export --backend onnx --extractor blip --cross-attention {mode} --out DIR",
        )
    if captions is not None and entry.vlm != "clip":
        raise UsageError(
            f"--captions {captions}: extractor {entry.name} retrieves no captions",
            fix=f"flamest-export --backend onnx --extractor clip --captions {captions} --out DIR",
        )
    if not 1 <= frames <= MAX_CAPTIONED_FRAMES:
        raise UsageError(
            f"--captioned-frames {frames}: expected one of 1 to {MAX_CAPTIONED_FRAMES}",
            fix="--captioned-frames 1, or leave it out",
        )
    if frames > 1 and entry.vlm is None:
        raise UsageError(f"--captioned-frames {frames}: extractor {entry.name} captions no frames", fix=EXAMPLE)
