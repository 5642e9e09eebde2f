"""Proving an existing bundle again: its files first, then its graphs against PyTorch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...base.errors import DataError, UnreachableError
from ...base.files import printable_path
from ...base.progress import Progress
from ...runtime.bundle.manifest import (
    KEYFRAMES_SOURCE,
    Manifest,
    RetrievedCaption,
    Source,
    SpatioTemporal,
    VisionLanguage,
)
from ...runtime.bundle.opening import open_bundle
from ...runtime.bundle.records import ChainParity, GraphParity, Precision
from ...runtime.bundle.signature import PublicKey, TrustedKeys
from ..graphs.spec import clip_plan, cnn_plan
from ..networks.clip import encode_captions, hash_tokens, tokenize_captions
from ..parts import ExportContext, captioner_plans, first_layers
from ..precision.calibration import CHAIN_SEED, seeded_footage
from ..weights.hub import is_hub_id
from ..weights.sources import PUBLISHED, VideoSource, is_self_contained, open_blip, open_clip, open_video
from .blip import compare_blip
from .chain import ChainPart, compare_captioner, compare_motion, compare_retriever, sum_up
from .single_graphs import compare_clip, compare_cnn, compare_keyframes
from .written_graphs import WrittenGraphs

PHASES = 4  # of a verification
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Verified:
    """What was compared. ``not_compared``: per source that cannot be loaded again, what to give."""

    manifest: Manifest
    graphs: dict[str, GraphParity]
    captions: int  # compared
    captions_equal: int
    chain: ChainParity | None  # None where nothing but fp32 was compared
    not_compared: dict[str, str]
    signers: tuple[PublicKey, ...]
    seconds: float


def verify_bundle(
    bundle: Path,
    progress: Progress,
    *,
    given: Mapping[str, str] | None = None,
    threads: int | None = None,
    trusted: TrustedKeys = (),
) -> Verified:
    """Check every file's hash, then compare the graphs with PyTorch where the weights can be had.

    ``given``: by network the source to compare with; others are the manifest's, where its name alone
    brings the weights (``random:*``, ``miniworld``, a hub id, ``slow_r50``). ``trusted``: as for
    ``open_bundle``. Raises DataError
    (``bundle_tampered``) for a changed file, (``parity_failed``) for a graph that computes something
    else, and (``other_weights``) when a source's weights are not those of the bundle.
    """
    started = time.monotonic()
    shop = ExportContext(bundle, progress, threads)
    with shop.phase("check files"):
        opened = open_bundle(bundle, trusted)
        manifest = opened.manifest
    again = BundleVerifier(manifest, bundle, dict(given or {}), threads)
    graphs: dict[str, GraphParity] = {}
    with shop.phase("compare the vision-language part with PyTorch"):
        graphs |= dict(again.vision_language())
    gc.collect()
    with shop.phase("compare keyframe features with PyTorch"):
        graphs |= dict(again.keyframes())
    with shop.phase("compare the spatio-temporal part with PyTorch"):
        graphs |= dict(again.spatio_temporal())
    return Verified(
        manifest=manifest,
        graphs=graphs,
        captions=again.captions,
        captions_equal=again.captions_equal,
        chain=sum_up(again.chain, {name: again.precisions(name) for name in again.chain}),
        not_compared=again.not_compared,
        signers=opened.signers,
        seconds=time.monotonic() - started,
    )


class BundleVerifier:
    """The comparisons of an export, on an existing bundle; what cannot be loaded is noted."""

    def __init__(self, manifest: Manifest, bundle: Path, given: dict[str, str], threads: int | None) -> None:
        self._manifest = manifest
        self._bundle = bundle
        self._given = given
        self._written = WrittenGraphs(bundle, manifest.graphs, threads)
        self._footage = seeded_footage(CHAIN_SEED)
        self.captions = self.captions_equal = 0
        self.chain: dict[str, ChainPart] = {}  # of the embeddings that a graph of lower precision makes
        self._slow: VideoSource | None = None  # loaded once for two graphs
        self.not_compared: dict[str, str] = {}

    def vision_language(self) -> Iterator[tuple[str, GraphParity]]:
        spec = self._manifest.vlm
        if isinstance(spec, VisionLanguage):
            captioner = self._load("blip", open_blip)
            if captioner is not None:
                _check_same(captioner.source, self._manifest.sources["blip"], "--blip")
                blip = compare_blip(captioner.model, self._written, spec)
                self.captions += blip.captions
                self.captions_equal += blip.captions_equal
                plans = captioner_plans(captioner.model, spec.attention_mode)
                if not self._is_fp32(plans):
                    self.chain["vlm"] = compare_captioner(plans, self._written, spec, self._footage)
                yield from blip.graphs.items()
        elif isinstance(spec, RetrievedCaption):
            loaded = self._load("clip", open_clip)
            if loaded is not None:
                _check_same(loaded.source, self._manifest.sources["clip"], "--clip")
                tokens = tokenize_captions(loaded.tokenizer, spec.captions, loaded.model.config)
                if hash_tokens(tokens) != spec.tokens_sha256:
                    raise DataError("--clip has another tokenizer than that of the export", code="other_weights")
                clip = compare_clip(loaded.model, tokens, self._written, spec)
                self.captions += clip.captions
                self.captions_equal += clip.captions_equal
                if not self._is_fp32(["clip"]):
                    plan = clip_plan(loaded.model, encode_captions(loaded.model, tokens))
                    self.chain["vlm"] = compare_retriever(plan, self._written, spec, self._footage)
                yield "clip", clip.graph

    def keyframes(self) -> Iterator[tuple[str, GraphParity]]:
        recorded = "slow" if "slow" in self._manifest.sources else KEYFRAMES_SOURCE
        slow = self._load(recorded, lambda name: open_video("slow", name), option="slow")
        if slow is not None:
            found = slow.source if recorded == "slow" else first_layers(slow)
            _check_same(found, self._manifest.sources[recorded], "--slow")
            self._slow = slow
            yield "keyframes", compare_keyframes(slow.net, self._written, slow.form)

    def spatio_temporal(self) -> Iterator[tuple[str, GraphParity]]:
        spec = self._manifest.cnn
        loaded = None if spec is None else self._network(spec)
        if spec is not None and loaded is not None:
            _check_same(loaded.source, self._manifest.sources[spec.network], f"--{spec.network}")
            compared = compare_cnn(loaded.network, loaded.net, self._written, loaded.form)
            if not self._is_fp32(["cnn"]):
                plan = cnn_plan(loaded.network, loaded.net, loaded.form)
                self.chain["cnn"] = compare_motion(plan, self._written, spec.preprocessing, self._footage)
            yield "cnn", compared

    def precisions(self, embedding: str) -> list[Precision]:
        """Of the graphs that make the embedding ``vlm`` or ``cnn``."""
        graphs = {*self._manifest.needed_graphs} - {"keyframes"}
        mine = graphs & {"cnn"} if embedding == "cnn" else graphs - {"cnn"}
        return [self._manifest.graphs[name].precision for name in sorted(mine)]

    def _is_fp32(self, graphs: Iterable[str]) -> bool:
        return {self._manifest.graphs[name].precision for name in graphs} == {"fp32"}

    def _network(self, spec: SpatioTemporal) -> VideoSource | None:
        if spec.network == "slow":
            return self._slow
        return self._load(spec.network, lambda name: open_video(spec.network, name))

    def _load(self, part: str, opener: Callable[[str], Loaded], option: str | None = None) -> Loaded | None:
        """The source as given, or as recorded; None, noted, when the recorded name does not bring the weights."""
        option = option or part
        recorded = self._manifest.sources[part]
        if option in self._given:
            return opener(self._given[option])
        if is_self_contained(recorded.name):
            return opener(recorded.name)
        if is_hub_id(recorded.name) or recorded.name in PUBLISHED.values():
            try:
                return opener(recorded.name)
            except UnreachableError:
                pass
        self.not_compared[part] = _advice(recorded, f"--{option}", self._bundle)
        return None


def _advice(recorded: Source, option: str, bundle: Path) -> str:
    return f"flamest-export verify {printable_path(bundle)} {option} SRC, where SRC is '{recorded.name}' of the export"


def _check_same(found: Source, recorded: Source, option: str) -> None:
    if found.weights_sha256 != recorded.weights_sha256:
        raise DataError(
            f"{option} {found.name} holds other weights (SHA-256 {found.weights_sha256[:12]}…) than the bundle was "
            f"exported from ({recorded.weights_sha256[:12]}…, {recorded.name}, {recorded.revision})",
            fix=f"give the source that the bundle was exported from with {option}",
            code="other_weights",
        )
