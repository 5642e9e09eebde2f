"""From sources of weights to one bundle folder, with its proof of parity. All or nothing."""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..base.clock import utc_text
from ..base.files import new_directory, sha256_file, write_atomic
from ..base.progress import Progress
from ..runtime.bundle.manifest import (
    KEYFRAMES_SOURCE,
    MANIFEST_FILE,
    SCHEMA,
    CrossAttention,
    FileEntry,
    Manifest,
    RetrievedCaption,
    Source,
    SpatioTemporal,
    VisionLanguage,
    encode_manifest,
)
from ..runtime.bundle.records import Calibration, ChainParity, Parity
from .checks import check_graphs, must_pass
from .networks.extractors import ExtractorEntry
from .parity.chain import sum_up
from .parts import (
    BLIP_STEPS,
    CLIP_STEPS,
    CNN_STEPS,
    KEYFRAME_STEPS,
    ExportContext,
    Part,
    export_blip,
    export_clip,
    export_cnn,
    export_keyframes,
    first_layers,
)
from .precision.calibration import CHAIN_SEED, CalibrationClips, seeded_footage
from .precision.lowering import STATIC, Lowering
from .weights.releases import licence_warning
from .weights.sources import open_video

LICENCES_FILE = "LICENCES.txt"


@dataclass(frozen=True)
class ExportRequest:
    """What to build, and where."""

    extractor: ExtractorEntry
    sources: Mapping[str, str]  # by network; at least those of the extractor's ``needed_networks``
    out: Path
    backend: str = "onnx"  # or "tensorrt": the graphs' form; plans are built afterwards
    cross_attention: CrossAttention = "bidirectional"
    captioned_frames: int = 1
    captions: Path | None = None  # CLIP's; None: those that come with its source
    extraction_seed: int = 0
    threads: int | None = None
    check: bool = False  # with every check that needs no GPU (checks.py)
    lowering: Lowering = field(default_factory=Lowering)
    own_clips: CalibrationClips | None = None  # to compare chains on; None: seeded clips


@dataclass(frozen=True)
class Exported:
    manifest: Manifest
    seconds: float


def steps_of(entry: ExtractorEntry) -> int:
    """How many steps the export of an extractor counts."""
    steps = KEYFRAME_STEPS
    if entry.vlm is not None:
        steps += {"clip": CLIP_STEPS, "blip": BLIP_STEPS, "blip-text": BLIP_STEPS + 1}[entry.vlm]
    if entry.network is not None:
        steps += CNN_STEPS - (1 if entry.network == "slow" else 0)
    return steps


def export_bundle(request: ExportRequest, progress: Progress) -> Exported:
    """Build the ONNX bundle ``request.out``; nothing is left behind when anything fails.

    ``progress`` counts ``steps_of`` the extractor. Raises DataError when sources are not what they
    should be or parity fails, UnreachableError without network, StorageError when the folder exists.
    """
    started = time.monotonic()
    with new_directory(request.out) as folder:
        footage = request.own_clips or seeded_footage(CHAIN_SEED)
        shop = ExportContext(folder, progress, request.threads, request.lowering, footage)
        parts: list[Part] = []
        # One model at a time: each is freed before the next is loaded.
        vlm = _export_vlm(request, shop, parts)
        gc.collect()
        with shop.phase(f"load Slow ({request.sources['slow']})"):
            slow = open_video("slow", request.sources["slow"])
        keyframes, part = export_keyframes(slow, shop)
        parts.append(part)
        network = request.extractor.network
        sources = {} if network == "slow" else {KEYFRAMES_SOURCE: first_layers(slow)}
        cnn: SpatioTemporal | None = None
        if network is not None:
            loaded = slow
            if network != "slow":
                del slow
                with shop.phase(f"load {network} ({request.sources[network]})"):
                    loaded = open_video(network, request.sources[network])
            cnn, part = export_cnn(loaded, request.extractor.choice, shop)
            parts.append(part)
        for made in parts:
            sources |= made.sources
        write_atomic(folder / LICENCES_FILE, _licences(sources))
        manifest = Manifest(
            schema=SCHEMA,
            created=utc_text(),
            extractor=request.extractor.name,
            backend=request.backend,
            extraction_seed=request.extraction_seed,
            graphs={name: graph for made in parts for name, graph in made.graphs.items()},
            keyframes=keyframes,
            vlm=vlm,
            cnn=cnn,
            sources=sources,
            files=_list_files(folder),
            parity=Parity(
                graphs={name: figures for made in parts for name, figures in made.parity.items()},
                captions_equal=sum(made.captions_equal for made in parts),
                captions=sum(made.captions for made in parts),
                chain=_chain(parts),
            ),
            versions=versions(),
            calibration=_calibration(request.lowering),
        )
        write_atomic(folder / MANIFEST_FILE, encode_manifest(manifest))
        if request.check:
            must_pass(check_graphs(folder, manifest), request.out)
    return Exported(manifest, time.monotonic() - started)


def _export_vlm(
    request: ExportRequest, shop: ExportContext, parts: list[Part]
) -> VisionLanguage | RetrievedCaption | None:
    """The extractor's vision-language part, if it has one; what it adds goes to ``parts``."""
    vlm: VisionLanguage | RetrievedCaption
    if request.extractor.vlm is None:
        return None
    if request.extractor.vlm == "clip":
        vlm, part = export_clip(request.sources["clip"], request.captions, request.captioned_frames, shop)
    else:
        attention_mode = "text" if request.extractor.vlm == "blip-text" else request.cross_attention
        vlm, part = export_blip(request.sources["blip"], attention_mode, request.captioned_frames, shop)
    parts.append(part)
    return vlm


def _chain(parts: list[Part]) -> ChainParity | None:
    compared = [part for part in parts if part.chain is not None]
    named = {"cnn" if "cnn" in part.graphs else "vlm": part for part in compared}
    return sum_up(
        {name: part.chain for name, part in named.items() if part.chain is not None},
        {name: [graph.precision for graph in part.graphs.values()] for name, part in named.items()},
    )


def _calibration(lowering: Lowering) -> Calibration | None:
    """Where the scales of int8 activations came from; None where there are none."""
    static = {graph for graph in STATIC if lowering.choice.of(graph) == "int8"}
    if not static:
        return None
    return Calibration(source=lowering.footage.source, clips=lowering.footage.clips)


def _licences(sources: dict[str, Source]) -> bytes:
    lines = ["Licences of the weights in this bundle, as far as the exporter knows them.", ""]
    lines += [f"{part}: {source.name} ({source.revision}): {source.licence}" for part, source in sources.items()]
    warnings = [licence_warning(part, source.licence) for part, source in sources.items()]
    lines += ["", *(f"WARNING: {warning}" for warning in warnings if warning)] if any(warnings) else []
    return ("\n".join(lines) + "\n").encode()


def _list_files(folder: Path) -> dict[str, FileEntry]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {file.name: FileEntry(sha256=sha256_file(file), bytes=file.stat().st_size) for file in files}


def versions() -> dict[str, str]:
    """What built the bundle, by package."""
    packages = ("flamest", "onnx", "onnxruntime", "onnxscript", "pytorchvideo", "torch", "torchvision", "transformers")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
