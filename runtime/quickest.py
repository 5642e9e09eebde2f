"""``--precision auto``: which CPU backend computes a bundle's graphs fastest here, and close enough.

Every backend that is installed extracts a few of the silo's own clips, through the extractor as it is. The fastest
whose captions are those of ONNX Runtime and whose vectors are within ``COSINE`` of its vectors is taken, and the choice
kept for this bundle on this machine. Where a GPU can be used nothing is measured: the ladder's first rung is taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from ..base.errors import DataError, FlamestError, StorageError
from ..base.files import sha256_bytes, sha256_file, write_atomic
from .backends.ladder import climb
from .backends.opening import Opening, machine_facts
from .backends.wishes import NO_WISHES, Wishes
from .bundle import Bundle, open_bundle
from .extractor import open_extractor
from .records import Clip, ClipFeatures
from .signature import TrustedKeys
from .stages import graph_of
from .video import DecodeLimits

CLIPS = 4  # measured, each twice: the first pass allocates
COSINE = 0.999  # smallest, of a clip's vectors to ONNX Runtime's


class Contender(msgspec.Struct, frozen=True):
    """What one way to compute gave."""

    backend: str  # "onnxruntime", "openvino", "openvino bf16", "each graph's fastest"
    by_graph: dict[str, str]  # where not all graphs run on one backend
    bf16: bool
    ms_per_clip: float  # wall, clips overlapping as they do in an extraction
    stages_ms: dict[str, float]
    smallest_cosine: float  # to ONNX Runtime's, of all clips' vectors
    captions_equal: int
    clips: int

    @property
    def fits(self) -> bool:
        return self.captions_equal == self.clips and self.smallest_cosine >= COSINE

    @property
    def wishes(self) -> Wishes:
        if self.by_graph:
            return Wishes(by_graph=self.by_graph)
        return Wishes(self.backend.partition(" ")[0], bf16=self.bf16)


class Choice(msgspec.Struct, frozen=True):
    """What was measured, and what follows. ``contenders`` is empty where nothing had to be measured."""

    chosen: str  # a contender's ``backend``, or "auto": the ladder decides
    why: str
    contenders: tuple[Contender, ...] = ()
    refused: dict[str, str] = {}  # by backend, why it was not measured
    kept: bool = False  # measured by an earlier run

    @property
    def wishes(self) -> Wishes:
        return next((each.wishes for each in self.contenders if each.backend == self.chosen), NO_WISHES)

    @property
    def line(self) -> str:
        """For people."""
        return f"precision auto: {self.why}{' (measured before)' if self.kept else ''}"


def choose_quickest(
    bundle: Path,
    videos: Iterable[Path],
    *,
    threads: int | None = None,
    limits: DecodeLimits | None = None,
    trusted: TrustedKeys = (),
    folder: Path | None = None,
) -> Choice:
    """The choice for ``bundle`` on this machine: the one that is kept in ``folder``, or a new one on ``videos``.

    The first ``CLIPS`` videos that can be read are used. Raises DataError as ``open_bundle`` does, ``no_clips``
    when none can be read.
    """
    checked = open_bundle(bundle, trusted)
    facts = machine_facts()
    if _on_gpu(checked):
        return Choice("auto", "a GPU runs the networks, nothing was measured")
    if "openvino" not in facts.versions:
        return Choice("auto", "ONNX Runtime is the only backend installed; pip install 'flamest[openvino]' adds one")
    path = (folder or default_folder()) / f"{_key(checked, threads)}.json"
    if (kept := _read(path)) is not None:
        return kept
    opening = Opening(threads=threads, facts=facts)
    choice = _measure(checked, videos, opening, limits, trusted, bf16=facts.bf16)
    _keep(path, choice)
    return choice


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/flamest/choices``, or ``~/.cache/flamest/choices``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "flamest" / "choices"


def _on_gpu(bundle: Bundle) -> bool:
    """Whether the ladder would put a graph on a GPU."""
    facts = machine_facts()
    return any(
        rung.refusal is None and rung.backend in ("tensorrt", "onnxruntime-cuda")
        for name in bundle.manifest.needed_graphs
        for rung in climb(name, bundle.manifest.graphs[name], facts, NO_WISHES)
    )


def _measure(
    bundle: Bundle,
    videos: Iterable[Path],
    opening: Opening,
    limits: DecodeLimits | None,
    trusted: TrustedKeys,
    *,
    bf16: bool,
) -> Choice:
    coming, clips = iter(videos), list[Clip]()
    contenders, refused = list[Contender](), dict[str, str]()
    reference: Sequence[ClipFeatures] = ()

    def run(name: str, wishes: Wishes) -> None:
        nonlocal reference
        try:
            with open_extractor(
                bundle.path, opening=replace(opening, wishes=wishes), limits=limits, trusted=trusted
            ) as extractor:
                while len(clips) < CLIPS and (more := list(islice(coming, CLIPS - len(clips)))):
                    found = extractor.extract_all([Clip(path, sha256_file(path)) for path in more])
                    clips.extend(done.clip for done in found if done.features is not None)
                if not clips:
                    raise DataError(
                        "--precision auto measures on the folder's clips, and none of them can be read",
                        fix="leave --precision out to see what is wrong with the clips",
                        code="no_clips",
                    )
                list(extractor.extract_all(clips))  # the first pass allocates
                began = time.perf_counter()
                features = [done.features for done in extractor.extract_all(clips) if done.features is not None]
                spent = (time.perf_counter() - began) * 1e3
        except FlamestError as error:
            if not contenders:
                raise
            refused[name] = error.message
            return
        reference = reference or features
        contenders.append(_contender(name, wishes, spent, features, reference))

    run("onnxruntime", Wishes("onnxruntime"))
    run("openvino", Wishes("openvino", require=True))
    if bf16 and bundle.manifest.precision == "fp32":
        run("openvino bf16", Wishes("openvino", require=True, bf16=True))
    if by_graph := _mixed(bundle, contenders):
        run("each graph's fastest", Wishes(by_graph=by_graph))
    return _best(contenders, refused)


def _contender(
    name: str, wishes: Wishes, spent_ms: float, features: Sequence[ClipFeatures], reference: Sequence[ClipFeatures]
) -> Contender:
    pairs, stages = list(zip(features, reference, strict=False)), features[0].stages_ms
    cosines = [
        _cosine(getattr(mine, part), getattr(theirs, part))
        for mine, theirs in pairs
        for part in ("vlm", "cnn")
        if len(getattr(theirs, part))
    ]
    return Contender(
        backend=name,
        by_graph=dict(wishes.by_graph),
        bf16=wishes.bf16,
        ms_per_clip=spent_ms / max(len(features), 1),
        stages_ms={stage: float(np.mean([each.stages_ms[stage] for each in features])) for stage in stages},
        smallest_cosine=min(cosines),
        captions_equal=sum(mine.caption.token_ids == theirs.caption.token_ids for mine, theirs in pairs),
        clips=len(reference),
    )


def _mixed(bundle: Bundle, contenders: Sequence[Contender]) -> dict[str, str]:
    """Each graph on the faster of the two backends; empty when that is one backend for all."""
    whole = {each.backend: each for each in contenders if not each.bf16 and each.fits}
    if set(whole) != {"onnxruntime", "openvino"}:
        return {}
    spent = {name: _by_graph(bundle, contender.stages_ms) for name, contender in whole.items()}
    faster = {graph: min(whole, key=lambda name: spent[name][graph]) for graph in spent["openvino"]}
    return faster if len(set(faster.values())) == 2 else {}


def _by_graph(bundle: Bundle, stages_ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of a clip by the graph that takes them."""
    spent: dict[str, float] = {}
    for stage, milliseconds in stages_ms.items():
        graph = graph_of(stage, bundle.manifest.graphs)
        if graph is not None:
            spent[graph] = spent.get(graph, 0.0) + milliseconds
    return spent


def _best(contenders: Sequence[Contender], refused: dict[str, str]) -> Choice:
    reference = contenders[0]
    best = min((each for each in contenders if each.fits), key=lambda each: each.ms_per_clip)
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


def _key(bundle: Bundle, threads: int | None) -> str:
    """What the choice depends on: the graphs, the processor and its cores, the backends' versions."""
    manifest, facts = bundle.manifest, machine_facts()
    graphs = {name: manifest.files[manifest.graphs[name].file].sha256 for name in manifest.needed_graphs}
    cores = threads or len(os.sched_getaffinity(0))
    told = (graphs, _processor(), cores, facts.versions, manifest.extraction_seed, CLIPS, COSINE)
    return sha256_bytes(msgspec.json.encode(told, order="deterministic"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _read(path: Path) -> Choice | None:
    """A file that cannot be read, or is of another version, is as none."""
    try:
        return msgspec.structs.replace(msgspec.json.decode(path.read_bytes(), type=Choice), kept=True)
    except (OSError, msgspec.DecodeError):
        return None


def _keep(path: Path, choice: Choice) -> None:
    """It is only a saving: where it cannot be written, the next run measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, msgspec.json.encode(choice), mode=0o600)
    except (OSError, StorageError):
        return
