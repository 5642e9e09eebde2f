"""From two sources of weights to one bundle folder, with its proof of parity. All or nothing."""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.files import new_directory, sha256_file, write_atomic
from ..base.progress import Progress
from ..runtime.manifest import (
    MANIFEST_FILE,
    SCHEMA,
    TOKENIZER_FILE,
    CaptionRule,
    CrossAttention,
    FileEntry,
    FramePreprocessing,
    Graph,
    GraphParity,
    KeyframeRule,
    Manifest,
    Parity,
    Source,
    SpatioTemporal,
    VisionLanguage,
    encode_manifest,
)
from .architectures import FRAMES, SlowForm
from .blip import text_shape
from .graphs import write_graph
from .parity import BlipParity, compare_blip, compare_slow
from .plans import (
    BLIP_MEAN,
    BLIP_STD,
    CANDIDATES,
    MAX_NEW_TOKENS,
    SLOW_MEAN,
    SLOW_STD,
    SLOW_WIDTH,
    keyframe_plan,
    slow_plan,
    text_plan,
    vision_plan,
)
from .slow import keyframe_width
from .sources import BlipSource, SlowSource, open_blip, open_slow
from .vocabulary import CLS, SEP

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration

LICENCES_FILE = "LICENCES.txt"
PHASES = 8  # of an export


@dataclass(frozen=True)
class ExportRequest:
    """What to build, and where."""

    blip: str
    slow: str
    out: Path
    cross_attention: CrossAttention = "bidirectional"
    extraction_seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class Exported:
    manifest: Manifest
    seconds: float


@dataclass(frozen=True)
class _BlipPart:
    source: Source
    spec: VisionLanguage
    graphs: dict[str, Graph]
    parity: BlipParity


@dataclass(frozen=True)
class _SlowPart:
    source: Source
    spec: SpatioTemporal
    keyframes: KeyframeRule
    graphs: dict[str, Graph]
    parity: dict[str, GraphParity]


@contextlib.contextmanager
def phase(progress: Progress, text: str) -> Iterator[None]:
    """One step of long work: said when it begins, counted when it is done."""
    progress.describe(text)
    yield
    progress.advance()


def export_bundle(request: ExportRequest, progress: Progress) -> Exported:
    """Build the ONNX bundle ``request.out``; nothing is left behind when anything fails.

    ``progress`` counts PHASES steps. Raises DataError when sources are not what they should be or parity
    fails, UnreachableError without network, StorageError when the folder exists.
    """
    started = time.monotonic()
    with new_directory(request.out) as folder:
        # One model at a time: each is freed before the next is loaded.
        blip = _export_blip(request, folder, progress)
        gc.collect()
        slow = _export_slow(request, folder, progress)
        sources = {"blip": blip.source, "slow": slow.source}
        write_atomic(folder / LICENCES_FILE, _licences(sources))
        manifest = Manifest(
            schema=SCHEMA,
            created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            extractor="blip+slow",
            precision="fp32",
            backend="onnx",
            extraction_seed=request.extraction_seed,
            graphs={**blip.graphs, **slow.graphs},
            keyframes=slow.keyframes,
            vlm=blip.spec,
            cnn=slow.spec,
            sources=sources,
            files=_list_files(folder),
            parity=Parity(
                graphs={**blip.parity.graphs, **slow.parity},
                captions_equal=blip.parity.captions_equal,
                captions=blip.parity.captions,
            ),
            versions=versions(),
        )
        write_atomic(folder / MANIFEST_FILE, encode_manifest(manifest))
    return Exported(manifest, time.monotonic() - started)


def _export_blip(request: ExportRequest, folder: Path, progress: Progress) -> _BlipPart:
    with phase(progress, f"load BLIP ({request.blip})"):
        loaded: BlipSource = open_blip(request.blip)
    spec = vision_language(loaded.model, request.cross_attention)
    write_atomic(folder / TOKENIZER_FILE, loaded.tokenizer)
    graphs = {}
    for plan_of in (vision_plan, text_plan):
        plan = plan_of(loaded.model)
        with phase(progress, f"write graph '{plan.name}'"):
            graphs[plan.name] = write_graph(plan, folder)
    with phase(progress, "compare BLIP with PyTorch"):
        parity = compare_blip(loaded.model, folder, spec, threads=request.threads)
    return _BlipPart(loaded.source, spec, graphs, parity)


def _export_slow(request: ExportRequest, folder: Path, progress: Progress) -> _SlowPart:
    with phase(progress, f"load Slow ({request.slow})"):
        loaded: SlowSource = open_slow(request.slow)
    graphs = {}
    for plan_of in (slow_plan, keyframe_plan):
        plan = plan_of(loaded.net, loaded.form)
        with phase(progress, f"write graph '{plan.name}'"):
            graphs[plan.name] = write_graph(plan, folder)
    with phase(progress, "compare Slow with PyTorch"):
        parity = compare_slow(loaded.net, folder, loaded.form, threads=request.threads)
    rule = keyframe_rule(loaded.net, loaded.form)
    return _SlowPart(loaded.source, spatio_temporal(loaded.form), rule, graphs, parity)


def vision_language(model: BlipForConditionalGeneration, cross_attention: CrossAttention) -> VisionLanguage:
    """Preprocessing, caption rule and reading of a captioner (NOTES decision 1: greedy, no prompt)."""
    config, shape = model.config, text_shape(model)
    return VisionLanguage(
        preprocessing=FramePreprocessing(
            size=config.vision_config.image_size, fit="stretch", filter="bicubic", mean=BLIP_MEAN, std=BLIP_STD
        ),
        text=shape,
        caption=CaptionRule(
            start_id=config.text_config.bos_token_id,
            end_id=config.text_config.sep_token_id,  # BLIP's captions end with [SEP], whatever eos_token_id says
            pad_id=config.text_config.pad_token_id,
            cls_id=CLS,
            sep_id=SEP,
            max_new_tokens=MAX_NEW_TOKENS,
        ),
        reading=cross_attention,
        width=shape.width,
    )


def spatio_temporal(form: SlowForm) -> SpatioTemporal:
    return SpatioTemporal(
        network="slow",
        choice="keyframes",
        preprocessing=_slow_preprocessing(form.crop),
        frames=FRAMES,
        width=SLOW_WIDTH,
        pooling="mean over the positions that the head pools to (slow_r50: four 7 x 7 windows)",
    )


def keyframe_rule(net: nn.Module, form: SlowForm) -> KeyframeRule:
    return KeyframeRule(
        count=FRAMES,
        candidates=CANDIDATES,
        preprocessing=_slow_preprocessing(form.keyframe_size),
        feature_width=keyframe_width(net),
        space="slow stem to res3, mean over positions",
    )


def _slow_preprocessing(size: int) -> FramePreprocessing:
    return FramePreprocessing(size=size, fit="crop", filter="bilinear", mean=SLOW_MEAN, std=SLOW_STD)


def _licences(sources: dict[str, Source]) -> bytes:
    lines = ["Licences of the weights in this bundle, as far as the exporter knows them.", ""]
    lines += [f"{part}: {source.name} ({source.revision}): {source.licence}" for part, source in sources.items()]
    return ("\n".join(lines) + "\n").encode()


def _list_files(folder: Path) -> dict[str, FileEntry]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return {file.name: FileEntry(sha256=sha256_file(file), bytes=file.stat().st_size) for file in files}


def versions() -> dict[str, str]:
    """What built the bundle, by package."""
    packages = ("flamest", "onnx", "onnxruntime", "onnxscript", "pytorchvideo", "torch", "transformers")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
