"""``--precision auto``: which CPU backend computes a bundle's graphs fastest here, and close enough.

Every backend that is installed extracts a few of the silo's own clips, through the extractor as it is. The fastest
whose captions are those of ONNX Runtime and whose vectors are within ``COSINE`` of its vectors is taken, and the choice
kept for this bundle on this machine. Where a GPU can be used nothing is measured: the ladder's first rung is taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from ..base.errors import FlamestError, StorageError
from ..base.files import sha256_bytes, sha256_file
from .backends.ladder import climb
from .backends.opening import Opening, effective_precision, machine_facts
from .backends.wishes import NO_WISHES, Wishes
from .bundle import open_manifest
from .extractor import Extractor, open_extractor
from .manifest import Manifest
from .quickest_records import COSINE, Choice, Contender, keep_choice, kept_at, read_choice
from .records import Clip, ClipFeatures
from .signature import TrustedKeys
from .stages import graph_of
from .video import DecodeLimits

CLIPS = 4  # measured, each twice: the first pass allocates


def choose_quickest(
    bundle: Path,
    videos: Iterable[Path],
    *,
    held: str | None = None,
    threads: int | None = None,
    limits: DecodeLimits | None = None,
    trusted: TrustedKeys = (),
    folder: Path | None = None,
    notice: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Choice:
    """The choice for ``bundle`` on this machine: the one that is kept in ``folder``, or a new one on ``videos``.

    ``held``: the precision of the features that the store has of this bundle; only ways that give the same kind are
    measured then. The first ``CLIPS`` videos that can be read are used; nothing is measured where there is none or
    ONNX Runtime, with which the others are compared, cannot run the bundle. ``notice`` is told before a measurement,
    which takes up to a minute or two; ``stop`` is asked between its parts. Raises DataError as ``open_manifest``.
    """
    manifest, _ = open_manifest(bundle, trusted)
    facts = machine_facts()
    if _on_gpu(manifest):
        return Choice("auto", "a GPU runs the networks, nothing was measured")
    if "openvino" not in facts.versions:
        return Choice("auto", "ONNX Runtime is the only backend installed; pip install 'flamest[openvino]' adds one")
    ways = {"onnxruntime": Wishes("onnxruntime", require=True), "openvino": Wishes("openvino", require=True)}
    if facts.bf16:
        ways["openvino bf16"] = Wishes("openvino", require=True, bf16=True)
    plain = effective_precision(manifest, NO_WISHES)
    for name, wishes in list(ways.items())[1:]:
        label = effective_precision(manifest, wishes)
        if held not in (None, label) or (wishes.bf16 and label == plain):
            del ways[name]
    if held not in (None, plain) and len(ways) == 1:
        return Choice("auto", f"the store holds features in {held}, which no backend here computes of this bundle")
    path = kept_at(folder, _key(manifest, threads, tuple(ways)))
    if (kept := read_choice(path)) is not None:
        return kept
    notice(f"precision auto: measuring {', '.join(ways)} on {CLIPS} of the clips; this is done once")
    contest = _Contest(manifest, bundle, videos, Opening(threads=threads, facts=facts), limits, trusted)
    choice = contest.run(ways, held, stop)
    if choice.contenders and not choice.refused:  # what failed may go another time
        keep_choice(path, choice)
    return choice


class _Contest:
    """The contenders so far, and the clips that they extract."""

    def __init__(
        self,
        manifest: Manifest,
        bundle: Path,
        videos: Iterable[Path],
        opening: Opening,
        limits: DecodeLimits | None,
        trusted: TrustedKeys,
    ) -> None:
        self._manifest = manifest
        self._opening = opening
        self._open = partial(open_extractor, bundle, limits=limits, trusted=trusted)
        self._videos = iter(videos)
        self._clips: list[Clip] = []
        self._contenders: list[Contender] = []
        self._refused: dict[str, str] = {}
        self._reference: Mapping[str, ClipFeatures] = {}  # by content

    def run(self, ways: Mapping[str, Wishes], held: str | None, stop: Callable[[], bool]) -> Choice:
        for name, wishes in ways.items():
            if stop():
                return Choice("auto", "stopped before all was measured")
            self._try(name, wishes)
            if not self._contenders:  # ONNX Runtime itself
                why = self._refused.get(name) or "none of the clips can be read"
                return Choice("auto", f"nothing was measured: {why}", refused=self._refused)
        if by_graph := _mixed(self._manifest, self._contenders):
            self._try("each graph's fastest", Wishes(by_graph=by_graph))
        eligible = [
            each for each in self._contenders if held in (None, effective_precision(self._manifest, each.wishes))
        ]
        return _best(self._contenders, eligible, self._refused)

    def _try(self, name: str, wishes: Wishes) -> None:
        try:
            with self._open(opening=replace(self._opening, wishes=wishes)) as extractor:
                if not self._clips:
                    self._clips = list(islice(self._readable(extractor), CLIPS))
                list(extractor.extract_all(self._clips))  # the first pass allocates
                began = time.perf_counter()
                done = list(extractor.extract_all(self._clips))
                spent_ms = (time.perf_counter() - began) * 1e3
        except FlamestError as error:
            self._refused[name] = error.message
            return
        features = {each.clip.sha256: each.features for each in done if each.features is not None}
        if not features:
            return
        if len(features) < len(self._clips):
            self._refused[name] = f"gave numbers for {len(features)} of {len(self._clips)} clips only"
            return
        self._reference = self._reference or features
        self._contenders.append(_contender(name, wishes, spent_ms, features, self._reference))

    def _readable(self, extractor: Extractor) -> Iterator[Clip]:
        """The clips that can be extracted, one after the other."""
        for path in self._videos:
            try:
                yield from (
                    done.clip
                    for done in extractor.extract_all([Clip(path, sha256_file(path))])
                    if done.features is not None
                )
            except StorageError:  # not there any more, or not ours to read
                continue


def _on_gpu(manifest: Manifest) -> bool:
    """Whether the ladder would put a graph on a GPU."""
    facts = machine_facts()
    return any(
        rung.refusal is None and rung.backend in ("tensorrt", "onnxruntime-cuda")
        for name in manifest.needed_graphs
        for rung in climb(name, manifest.graphs[name], facts, NO_WISHES)
    )


def _contender(
    name: str,
    wishes: Wishes,
    spent_ms: float,
    features: Mapping[str, ClipFeatures],
    reference: Mapping[str, ClipFeatures],
) -> Contender:
    pairs = [(features[content], theirs) for content, theirs in reference.items()]
    cosines = [
        _cosine(getattr(mine, part), getattr(theirs, part))
        for mine, theirs in pairs
        for part in ("vlm", "cnn")
        if len(getattr(theirs, part))
    ]
    stages = pairs[0][0].stages_ms
    return Contender(
        backend=name,
        by_graph=dict(wishes.by_graph),
        bf16=wishes.bf16,
        ms_per_clip=spent_ms / len(pairs),
        stages_ms={stage: float(np.mean([mine.stages_ms[stage] for mine, _ in pairs])) for stage in stages},
        smallest_cosine=min(cosines),
        captions_equal=sum(mine.caption == theirs.caption for mine, theirs in pairs),
        clips=len(pairs),
    )


def _mixed(manifest: Manifest, contenders: Sequence[Contender]) -> dict[str, str]:
    """Each graph on the faster of the two backends; empty when that is one backend for all."""
    whole = {each.backend: each for each in contenders if not each.bf16 and each.fits}
    if set(whole) != {"onnxruntime", "openvino"}:
        return {}
    spent = {name: _by_graph(manifest, contender.stages_ms) for name, contender in whole.items()}
    faster = {graph: min(whole, key=lambda name: spent[name][graph]) for graph in spent["openvino"]}
    return faster if len(set(faster.values())) == 2 else {}


def _by_graph(manifest: Manifest, stages_ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of a clip by the graph that takes them."""
    spent: dict[str, float] = {}
    for stage, milliseconds in stages_ms.items():
        graph = graph_of(stage, manifest.graphs)
        if graph is not None:
            spent[graph] = spent.get(graph, 0.0) + milliseconds
    return spent


def _best(contenders: Sequence[Contender], eligible: Sequence[Contender], refused: dict[str, str]) -> Choice:
    """``contenders``: ONNX Runtime first; ``eligible``: those that may be chosen."""
    reference = contenders[0]
    fitting = [each for each in eligible if each.fits]
    if not fitting:
        return Choice("auto", "no backend gives what ONNX Runtime gives", tuple(contenders), refused)
    best = min(fitting, key=lambda each: each.ms_per_clip)
    if best is reference:
        why = f"ONNX Runtime is fastest ({reference.ms_per_clip:.0f} ms a clip)"
    else:
        why = (
            f"{best.backend} takes {best.ms_per_clip:.0f} ms a clip, ONNX Runtime {reference.ms_per_clip:.0f}; "
            f"{best.captions_equal} of {best.clips} captions equal, smallest cosine {best.smallest_cosine:.6f}"
        )
    return Choice(best.backend, why, tuple(contenders), refused)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)))
    return float(a.astype(np.float64) @ b.astype(np.float64)) / lengths if lengths else float(np.array_equal(a, b))


def _key(manifest: Manifest, threads: int | None, ways: tuple[str, ...]) -> str:
    """What the choice depends on: the bundle, the processor and its cores, the backends and their versions."""
    graphs = {name: manifest.files[manifest.graphs[name].file].sha256 for name in manifest.needed_graphs}
    cores = threads or len(os.sched_getaffinity(0))
    told = (manifest.fingerprint, graphs, _processor(), cores, machine_facts().versions, ways, CLIPS, COSINE)
    return sha256_bytes(msgspec.json.encode(told, order="deterministic"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
