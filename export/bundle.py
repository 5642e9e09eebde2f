"""The whole build of a bundle: sources of weights -> graphs -> parity -> manifest -> TensorRT engines.

All or nothing up to the manifest; engines come after it, because the bundle can be used without them.
"""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from .. import __version__
from ..base.clock import utc_text
from ..base.files import new_directory, sha256_file, write_atomic
from ..base.progress import Progress, progress_bar
from ..runtime.backends.tensorrt.supply import BuildTarget, EngineResult
from ..runtime.bundle.graph_records import Calibration
from ..runtime.bundle.manifest import (
    ENCODER_SCHEMA,
    MANIFEST_FILE,
    SCHEMA,
    TOKENIZER_FILE,
    CrossAttention,
    FileEntry,
    KeyframeRule,
    Manifest,
    RetrievedCaption,
    Source,
    SpatioTemporal,
    VisionLanguage,
    encode_manifest,
)
from .checks import check_graphs, raise_for_failures
from .encoder.loading import open_encoder
from .engines import add_engines
from .networks.extractors import ExtractorEntry
from .networks.reference import quiet_libraries, torch_threads
from .part_export import INT8_STEPS, ExportContext, ExportedPart, phase
from .parts import (
    captioner_part,
    evenly_spread,
    keyframe_part,
    keyframe_rule,
    retrieved_caption,
    retriever_part,
    spatio_temporal,
    spatio_temporal_part,
    total_parity,
    vision_language,
)
from .precision.calibration import CHAIN_SEED, CalibrationClips, seeded_clips
from .precision.choice import FP32, PrecisionChoice, embedding_graphs
from .precision.lowering import STATIC, choose_lowering
from .weights.fetching import fetch_sources
from .weights.loading import LoadedVideo, open_blip, open_clip, open_video
from .weights.releases import licence_warning
from .weights.source import WeightSource

LICENCES_FILE = "LICENCES.txt"


@dataclass(frozen=True)
class ExportRequest:
    """A bundle to build: all that the options of ``flamest-export`` decide."""

    extractor: ExtractorEntry
    sources: Mapping[str, WeightSource]  # by network; at least those of the extractor's ``needed_networks``
    out: Path
    backend: str = "onnx"  # or "tensorrt": the form of the graphs
    precision: PrecisionChoice = FP32
    cross_attention: CrossAttention = "bidirectional"
    captioned_frames: int = 1
    captions: Path | None = None  # CLIP's; None: those that come with its source
    extraction_seed: int = 0
    threads: int | None = None
    check: bool = False  # with every check that needs no GPU (checks.py)
    own_clips: CalibrationClips | None = None  # to calibrate int8 and compare chains on; None: seeded clips
    target: BuildTarget | None = None  # for which TensorRT engines are built; None: no engines


@dataclass(frozen=True)
class BuiltBundle:
    manifest: Manifest
    seconds: float  # without the engines
    engines: tuple[EngineResult, ...] = ()


def build_bundle(request: ExportRequest) -> BuiltBundle:
    """Build the bundle of ``request`` with its engines, showing progress.

    Raises as ``export_bundle`` and ``add_engines``.
    """
    fetch_sources(request.sources[network] for network in request.extractor.needed_networks)
    with (
        progress_bar("exporting", steps_of(request.extractor, request.precision), unit="steps") as progress,
        quiet_libraries(),
        torch_threads(request.threads),
    ):
        exported = export_bundle(request, progress)
    if request.target is None:
        return exported
    manifest, engines = add_engines(request.out, request.target)
    return BuiltBundle(manifest, exported.seconds, engines)


def steps_of(entry: ExtractorEntry, choice: PrecisionChoice = FP32) -> int:
    """Steps that ``export_bundle`` counts: loading, each graph, the comparison, for every network.

    A graph in int8 is calibrated in INT8_STEPS, and each network with such graphs is tried in as many.
    """
    vlm = {None: 0, "clip": 3, "blip": 4, "blip-text": 5}[entry.vlm]
    cnn = 0 if entry.network is None else 2 if entry.network == "slow" else 3
    own = 0 if entry.encoder is None else 3
    int8 = {graph for graph in embedding_graphs(entry) if choice.of(graph) == "int8"}
    tried = len({graph if graph.startswith("cnn") else "vlm" for graph in int8})
    keyframes = 3 if entry.needed_networks else 0
    return vlm + keyframes + cnn + own + len(int8) * (INT8_STEPS - 1) + tried * INT8_STEPS


def export_bundle(request: ExportRequest, progress: Progress) -> BuiltBundle:
    """Build the ONNX bundle ``request.out``; nothing is left behind when anything fails.

    ``progress`` counts ``steps_of`` the extractor. Raises DataError when a source's files are wrong or
    parity fails, UnreachableError without network, StorageError when the folder exists.
    """
    started = time.monotonic()
    with new_directory(request.out) as folder:
        lowering = choose_lowering(request.precision, request.backend, request.own_clips, request.threads)
        clips = request.own_clips or seeded_clips(CHAIN_SEED)
        context = ExportContext(folder, progress, request.threads, lowering, clips)
        # One model at a time: each is freed before the next is loaded.
        vlm = _export_vlm(request, context)
        gc.collect()
        keyframes, cnn = _export_video(request, context)
        gc.collect()
        own = _export_encoder(request, context)
        parts: list[ExportedPart[Any]] = [part for part in (vlm, keyframes, cnn, own) if part is not None]
        in_order = (keyframes, vlm, cnn, own)
        sources = {name: source for part in in_order if part for name, source in part.sources.items()}
        first, second = (cnn, own) if cnn is not None else (own, None)
        write_atomic(folder / LICENCES_FILE, _licences(sources))
        manifest = Manifest(
            schema=SCHEMA if own is None else ENCODER_SCHEMA,
            created=utc_text(),
            extractor=request.extractor.name,
            backend=request.backend,
            extraction_seed=request.extraction_seed,
            graphs={name: graph for part in parts for name, graph in part.graphs.items()},
            keyframes=_frames_rule(request, keyframes),
            vlm=None if vlm is None else vlm.record,
            cnn=None if first is None else first.record,
            cnn2=UNSET if second is None else second.record,
            sources=sources,
            files=_list_files(folder),
            parity=total_parity([part.compared for part in parts]),
            versions=versions(),
            notes=(*request.precision.notes, *context.notes),
            calibration=_calibration(request.precision, lowering.clips.calibration),
            tf32=request.precision.by_default if request.target is None else request.target.options.tf32,
        )
        write_atomic(folder / MANIFEST_FILE, encode_manifest(manifest))
        int8 = "int8" in {graph.precision for graph in manifest.graphs.values()}
        if request.check or (int8 and request.backend == "tensorrt"):  # a form that its parser must take
            raise_for_failures(check_graphs(folder, manifest), request.out)
    return BuiltBundle(manifest, time.monotonic() - started)


def _export_vlm(
    request: ExportRequest, context: ExportContext
) -> ExportedPart[VisionLanguage] | ExportedPart[RetrievedCaption] | None:
    """The vision-language part, where the extractor has one."""
    sources, progress = request.sources, context.progress
    if request.extractor.vlm is None:
        return None
    if request.extractor.vlm == "clip":
        with phase(progress, f"load CLIP ({sources['clip'].text})"):
            clip = open_clip(sources["clip"])
            record = retrieved_caption(clip, request.captions, request.captioned_frames)
        return context.export(retriever_part(clip, record))
    with phase(progress, f"load BLIP ({sources['blip'].text})"):
        blip = open_blip(sources["blip"])
    write_atomic(context.folder / TOKENIZER_FILE, blip.tokenizer)
    attention = "text" if request.extractor.vlm == "blip-text" else request.cross_attention
    vlm = vision_language(blip.model, blip.tokenizer, attention, request.captioned_frames)
    return context.export(captioner_part(blip, vlm))


def _export_video(
    request: ExportRequest, context: ExportContext
) -> tuple[ExportedPart[KeyframeRule] | None, ExportedPart[SpatioTemporal] | None]:
    """The keyframe graph from Slow, and the built-in spatio-temporal part, where the extractor has them."""
    network = request.extractor.network
    if not request.extractor.needed_networks:
        return None, None
    loaded = _load_video("slow", request, context)
    keyframes = context.export(keyframe_part(loaded, keyframe_rule(loaded), alone=network != "slow"))
    if network is None:
        return keyframes, None
    if network != "slow":
        del loaded  # freed before the next network is loaded
        loaded = _load_video(network, request, context)
    return keyframes, context.export(spatio_temporal_part(loaded, spatio_temporal(loaded, request.extractor.choice)))


def _export_encoder(request: ExportRequest, context: ExportContext) -> ExportedPart[SpatioTemporal] | None:
    """The encoder of the exporter's own, where there is one."""
    encoder = request.extractor.encoder
    if encoder is None:
        return None
    with phase(context.progress, f"load {encoder.name}"):
        loaded, record = open_encoder(encoder)
    part = spatio_temporal_part(
        loaded, spatio_temporal(loaded, encoder.choice, record), request.extractor.encoder_graph
    )
    return context.export(part)


def _frames_rule(request: ExportRequest, keyframes: ExportedPart[KeyframeRule] | None) -> KeyframeRule:
    if keyframes is not None:
        return keyframes.record
    assert request.extractor.encoder is not None
    return evenly_spread(request.extractor.encoder.frames)


def _load_video(network: str, request: ExportRequest, context: ExportContext) -> LoadedVideo:
    title = "Slow" if network == "slow" else network
    with phase(context.progress, f"load {title} ({request.sources[network].text})"):
        return open_video(request.sources[network])


def _calibration(choice: PrecisionChoice, clips: CalibrationClips) -> Calibration | None:
    """The clips that the scales of int8 activations came from; None where there are no such scales."""
    static = {graph for graph in STATIC if choice.of(graph) == "int8"}
    return Calibration(source=clips.source, clips=clips.clips) if static else None


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
    """Versions of Python and of the packages that built the bundle."""
    packages = ("onnx", "onnxruntime", "onnxscript", "pytorchvideo", "torch", "torchvision", "transformers")
    found = {"python": platform.python_version(), "flamest": __version__}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
