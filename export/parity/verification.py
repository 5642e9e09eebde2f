"""Verification of an existing bundle: its files first, then its graphs against PyTorch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...base.errors import DataError, UnreachableError
from ...base.files import printable_path
from ...base.progress import Progress
from ...runtime.bundle.graph_records import Parity
from ...runtime.bundle.manifest import KEYFRAMES_SOURCE, Manifest, RetrievedCaption, Source, VisionLanguage
from ...runtime.bundle.opening import open_bundle
from ...runtime.bundle.signature import PublicKey, TrustedKeys
from ..encoder.loading import check_same_encoder, open_encoder
from ..part_export import phase
from ..parts import (
    ComparedPart,
    Part,
    captioner_part,
    compare_part,
    keyframe_part,
    retriever_part,
    spatio_temporal,
    spatio_temporal_part,
    total_parity,
)
from ..precision.calibration import CHAIN_SEED, seeded_clips
from ..weights.loading import LoadedVideo, open_blip, open_clip, open_video
from ..weights.source import WeightSource, recorded_source
from .written_graphs import WrittenGraphs

if TYPE_CHECKING:
    from ..encoder.settings import Encoder

PHASES = 5  # of a verification
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Verified:
    """Outcome of a verification. ``not_compared``: by source that cannot be loaded again, the option to give."""

    manifest: Manifest
    parity: Parity  # of the graphs that were compared
    not_compared: dict[str, str]
    signers: tuple[PublicKey, ...]
    seconds: float


def verify_bundle(
    bundle: Path,
    progress: Progress,
    *,
    given: Mapping[str, WeightSource] | None = None,
    encoder: Encoder | None = None,
    threads: int | None = None,
    trusted: TrustedKeys = (),
) -> Verified:
    """Check every file's hash, then compare the graphs with PyTorch where the weights can be had.

    ``given``: by network the source to compare with; others are the manifest's, where its name alone
    brings the weights (``random:*``, ``miniworld``, a hub id, ``slow_r50``). ``trusted``: as for
    ``open_bundle``. ``encoder``: of a bundle with one of the exporter's own, which is compared with nothing else: a
    manifest brings no code. Raises DataError (``bundle_tampered``) for a changed file, (``parity_failed``) for a
    graph that computes something else, (``other_weights``) when a source's weights are not those of
    the bundle, and (``other_encoder``) when the encoder's settings or code are not.
    """
    started = time.monotonic()
    with phase(progress, "check files"):
        opened = open_bundle(bundle, trusted)
    manifest = opened.manifest
    verifier = BundleVerifier(bundle, manifest, given or {}, encoder)
    written, clips = WrittenGraphs(bundle, manifest.graphs, threads, opened), seeded_clips(CHAIN_SEED)
    compared: list[ComparedPart] = []
    for title, find_part in (
        ("the vision-language part", verifier.vision_language),
        ("keyframe features", verifier.keyframes),
        ("the spatio-temporal part", verifier.spatio_temporal),
        ("the encoder", verifier.own_encoder),
    ):
        with phase(progress, f"compare {title} with PyTorch"):
            part = find_part()
            if part is not None:
                compared.append(compare_part(part, written, clips))
        del part
        gc.collect()
    return Verified(
        manifest=manifest,
        parity=total_parity(compared),
        not_compared=verifier.not_compared,
        signers=opened.signers,
        seconds=time.monotonic() - started,
    )


class BundleVerifier:
    """Makes the parts of an existing bundle again, from its manifest's records and its sources.

    Each method returns None where the bundle has no such part, and where its weights cannot be loaded: then
    ``not_compared`` names the option to give.
    """

    def __init__(
        self, bundle: Path, manifest: Manifest, given: Mapping[str, WeightSource], encoder: Encoder | None = None
    ) -> None:
        self._bundle = bundle
        self._manifest = manifest
        self._given = given
        self._encoder = encoder
        self._slow: LoadedVideo | None = None  # loaded once for two graphs
        self.not_compared: dict[str, str] = {}

    def vision_language(self) -> Part[VisionLanguage] | Part[RetrievedCaption] | None:
        vlm = self._manifest.vlm
        if isinstance(vlm, VisionLanguage):
            blip = self._load("blip", open_blip)
            return None if blip is None else self._checked(captioner_part(blip, vlm))
        if isinstance(vlm, RetrievedCaption):
            clip = self._load("clip", open_clip)
            if clip is not None:
                _check_same(clip.source, self._manifest.sources["clip"], "--clip")
                return retriever_part(clip, vlm)
        return None

    def keyframes(self) -> Part[Any] | None:
        if not self._manifest.has_keyframes:
            return None
        alone = "slow" not in self._manifest.sources
        self._slow = self._load("slow", open_video, recorded=KEYFRAMES_SOURCE if alone else "slow")
        if self._slow is None:
            return None
        if not alone:
            _check_same(self._slow.source, self._manifest.sources["slow"], "--slow")
        return self._checked(keyframe_part(self._slow, self._manifest.keyframes, alone=alone))

    def spatio_temporal(self) -> Part[Any] | None:
        cnn = self._manifest.cnn
        if cnn is None or cnn.network == "encoder":
            return None
        loaded = self._slow if cnn.network == "slow" else self._load(cnn.network, open_video)
        return None if loaded is None else self._checked(spatio_temporal_part(loaded, cnn))

    def own_encoder(self) -> Part[Any] | None:
        """The encoder of the exporter's own, made again from the settings that were given."""
        found = {graph: part for graph, part in self._manifest.spatio_temporal.items() if part.network == "encoder"}
        if not found:
            return None
        if self._encoder is None:
            advice = f"flamest-export verify {printable_path(self._bundle)} --extractor FILE.toml, the export's own"
            self.not_compared["encoder"] = advice
            return None
        ((graph, recorded),) = found.items()
        loaded, record = open_encoder(self._encoder)
        check_same_encoder(spatio_temporal(loaded, self._encoder.choice, record), recorded)
        return self._checked(spatio_temporal_part(loaded, recorded, graph))

    def _checked(self, part: Part[Any]) -> Part[Any]:
        for name, found in part.sources.items():
            option = {KEYFRAMES_SOURCE: "slow", "encoder": "extractor"}.get(name, name)
            _check_same(found, self._manifest.sources[name], f"--{option}")
        return part

    def _load(
        self, network: str, opener: Callable[[WeightSource], Loaded], recorded: str | None = None
    ) -> Loaded | None:
        """The network from the source that was given, or from the one of the manifest's entry ``recorded``."""
        recorded = recorded or network
        entry = self._manifest.sources[recorded]
        if network in self._given:
            return opener(self._given[network])
        source = recorded_source(network, entry.name)
        if source is not None:
            try:
                return opener(source)
            except UnreachableError:
                pass
        self.not_compared[recorded] = _advice(entry, f"--{network}", self._bundle)
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
