"""``--precision auto``: which CPU backend computes a bundle's graphs fastest here, and close enough.

Every installed backend computes a few of the silo's own clips (benchmark.py). The choice is the fastest whose captions
equal ONNX Runtime's and whose vectors have a cosine of ``MIN_COSINE`` or more to its vectors; ONNX Runtime, the common
reference of all sites, is replaced for a clear gain only. The measurements are kept for this bundle on this machine.
Where a GPU can be used nothing is measured: the first backend candidate is taken.

Where a store already holds features of the bundle, others are computed in their precision, or there is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...base.errors import FlamestError, SettingsError
from ...base.files import Stopped, cache_folder, sha256_bytes
from ...base.process import usable_cores
from ..backends.machine import MachineFacts
from ..backends.opening import OpeningOptions, effective_precision, machine_facts
from ..backends.options import DEFAULT_OPTIONS, BackendOptions
from ..backends.ranking import rank_backends
from ..backends.unavailable import BackendUnavailable
from ..bundle.manifest import Manifest
from ..bundle.opening import open_bundle, open_manifest
from ..bundle.signature import TrustedKeys
from ..clip_records import Clip
from ..video.decoder import DecodeLimits
from .benchmark import MAX_RELATIVE_TIME, MEASURED_CLIPS, MIN_PASSES, benchmark_backends, read_clips
from .measurements import (
    CONFIGURATIONS,
    MIN_COSINE,
    REFERENCE,
    Choice,
    Measured,
    Measurement,
    keep_measured,
    read_measured,
)

_MEMORY = 2.2  # a backend's memory over the size of the graphs' files: three backends at full size took 6.4 GB
_STOPPED = Choice("auto", "stopped before all was measured")


@dataclass(frozen=True)
class AutotuneRequest:
    """The bundle to choose a configuration for, and the limits of the choice."""

    bundle: Path
    stored_precision: str | None = None  # of the features that the store holds of this bundle: no other is chosen
    threads: int | None = None
    limits: DecodeLimits | None = None
    trusted: TrustedKeys = ()
    facts: MachineFacts | None = None  # of the devices to use; None: of this machine
    fallback_folder: Path | None = None  # for the measurements, where the machine's cache cannot be written
    folder: Path | None = None  # in place of the machine's cache

    @property
    def preferred_folder(self) -> Path | None:
        """Folder for the measurements; None for a user without a home."""
        return self.folder or cache_folder("choices")

    @property
    def folders(self) -> list[Path]:
        """Folders for the measurements, the preferred one first."""
        return [folder for folder in (self.preferred_folder, self.fallback_folder) if folder is not None]


def autotune_backends(
    request: AutotuneRequest,
    clips: Iterable[Clip],
    *,
    notice: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Choice:
    """Choose a configuration for a bundle on this machine, from kept measurements or by measuring ``clips``.

    Only as many of ``clips`` are taken as are needed: none when nothing is measured. ``notice`` is called before a
    measurement, which takes up to two minutes, and where its results could not be kept; ``stop`` is called between
    its parts, and while bundle and clips are read: the choice is ``auto`` then. Raises SettingsError
    ``held_precision`` when nothing here computes the bundle in ``request.stored_precision``, DataError as
    ``open_bundle``.
    """
    manifest, _ = open_manifest(request.bundle, request.trusted)
    facts, stored = request.facts or machine_facts(), request.stored_precision
    plain = effective_precision(manifest, DEFAULT_OPTIONS)
    if stored in (None, plain) and _on_gpu(manifest, facts):
        return Choice("auto", "a GPU runs the networks, nothing was measured")
    possible = [name for name, reasons in _unavailable(manifest, facts).items() if not reasons]
    allowed = [name for name in possible if stored in (None, effective_precision(manifest, CONFIGURATIONS[name]))]
    if stored is not None and not allowed:
        raise held_precision_error(manifest, stored, facts)
    if len(allowed) < 2 or REFERENCE not in possible:
        return _only(allowed, stored)
    key = _key(manifest, request.threads)
    measured = read_measured(request.folders, key)
    if measured is not None:
        return msgspec.structs.replace(choose_configuration(manifest, measured, stored), kept=True)
    if (free := available_bytes()) is not None and (needed := _needed_bytes(manifest, possible)) > free:
        why = f"nothing was measured: that takes {needed / 1e6:.0f} MB of memory, {free / 1e6:.0f} MB are free"
        return Choice(REFERENCE, why)
    try:
        return _measure(request, key, possible, clips, notice, stop)
    except Stopped:
        return _STOPPED


def held_precision_error(manifest: Manifest, stored: str, facts: MachineFacts) -> SettingsError:
    """The error that nothing on this machine computes the bundle in the precision of the stored features, and why."""
    plain = effective_precision(manifest, DEFAULT_OPTIONS)
    reasons = _unavailable(manifest, facts)
    of = [
        each
        for name in reasons
        if effective_precision(manifest, CONFIGURATIONS[name]) == stored
        for each in reasons[name]
    ]
    why = "; ".join(dict.fromkeys(map(str, of))) or f"it computes in {plain}"
    fixes = [each.fix for each in of if each.fix]
    if any(each.code.value == "OPENVINO_MISSING" for each in of):
        fixes = ["pip install 'flamest[openvino]'"]
    elif not of:
        fixes = [f"use the bundle that was exported in {stored}"]
    other = f"use another --store, for features in {plain}"
    return SettingsError(
        f"the store's features of this bundle are {stored}, and nothing on this machine computes it in {stored}: {why}",
        fix="; or ".join((*dict.fromkeys(fixes), other)),
        code="held_precision",
    )


def require_precision(
    manifest: Manifest, stored: str, backend_options: BackendOptions, facts: MachineFacts | None = None
) -> None:
    """Raise ``held_precision`` when a graph cannot run in the precision ``stored`` with ``backend_options``.

    ``facts``: None asks this machine.
    """
    facts = facts or machine_facts()
    for name in manifest.needed_graphs:
        if all(
            candidate.unavailable is not None
            for candidate in rank_backends(name, manifest.graphs[name], facts, backend_options)
        ):
            raise held_precision_error(manifest, stored, facts)


def _measure(
    request: AutotuneRequest,
    key: str,
    configurations: Sequence[str],
    clips: Iterable[Clip],
    notice: Callable[[str], None],
    stop: Callable[[], bool],
) -> Choice:
    bundle = open_bundle(request.bundle, request.trusted, stop=stop)
    opening = OpeningOptions(threads=request.threads, facts=request.facts or machine_facts())
    try:
        read = read_clips(bundle, opening, clips, request.limits, stop)
    except FlamestError as error:  # ONNX Runtime's own
        return Choice("auto", f"nothing was measured: {error.message}", refused={REFERENCE: error.message})
    if not read:
        return Choice("auto", "nothing was measured: none of the clips can be read")
    clips_read = _clips(len(read))
    few = "" if len(read) == MEASURED_CLIPS else f" (fewer than {MEASURED_CLIPS}: the result is rough)"
    notice(
        f"precision auto: measuring {', '.join(configurations)} on {clips_read}{few}, a warm-up and at least "
        f"{MIN_PASSES} passes of the networks each; this is done once for this bundle on this machine"
    )
    measured = benchmark_backends(bundle, opening, configurations, read, stop)
    if measured is None:
        return _STOPPED
    kept_in = keep_measured(request.folders, key, measured)
    if kept_in is None or kept_in != request.folders[0]:
        where = "for this process only" if kept_in is None else f"in {kept_in}"
        cache = request.preferred_folder or "~/.cache"
        notice(f"precision auto: the measurements are kept {where}: the cache folder {cache} cannot be written")
    return choose_configuration(bundle.manifest, measured, request.stored_precision)


def _only(allowed: Sequence[str], stored: str | None) -> Choice:
    """The choice where at most one configuration is possible."""
    if stored is None and list(allowed) == [REFERENCE]:
        return Choice("auto", "ONNX Runtime is the only backend that computes this bundle here, nothing was measured")
    if not allowed:  # opening the graphs reports every reason
        return Choice("auto", "no CPU backend computes this bundle here, nothing was measured")
    kind = f"the store holds features in {stored}; " if stored else ""
    return Choice(allowed[0], f"{kind}{allowed[0]} is the only backend that does so here, nothing was measured")


def choose_configuration(manifest: Manifest, measured: Measured, stored: str | None) -> Choice:
    """Choose among measurements: a later configuration, less simple, must be clearly faster than the choice so far."""
    if not measured.measurements:
        why = measured.refused.get(REFERENCE, "ONNX Runtime has no results to compare with")
        return Choice("auto", f"nothing was measured: {why}", refused=measured.refused)
    reference = measured.measurements[0]
    best = reference
    eligible = [
        each
        for each in measured.measurements
        if each.fits and stored in (None, effective_precision(manifest, each.backend_options))
    ]
    for each in eligible:
        if each.ms_per_clip <= MAX_RELATIVE_TIME * best.ms_per_clip:
            best = each
    return Choice(best.backend, _reason(reference, best, eligible), measured.measurements, measured.refused)


def _reason(reference: Measurement, best: Measurement, eligible: Sequence[Measurement]) -> str:
    basis = f"in the networks, medians of {reference.passes} passes over {_clips(reference.clips)}"
    if best is not reference:
        return (
            f"{best.backend} takes {best.ms_per_clip:.0f} ms a clip {basis}, ONNX Runtime {reference.ms_per_clip:.0f}; "
            f"{best.captions_equal} of {best.clips} captions equal, smallest cosine {best.smallest_cosine:.6f}"
        )
    others = [each for each in eligible if each is not reference]
    second = min(others, key=lambda each: each.ms_per_clip, default=None)
    if second is None:
        return f"ONNX Runtime ({reference.ms_per_clip:.0f} ms a clip {basis}): no other backend gives the same results"
    return (
        f"ONNX Runtime takes {reference.ms_per_clip:.0f} ms a clip {basis}, {second.backend} {second.ms_per_clip:.0f}; "
        f"another backend is chosen only if it takes at least {100 - 100 * MAX_RELATIVE_TIME:.0f} % less time"
    )


def _clips(count: int) -> str:
    return "1 clip" if count == 1 else f"{count} clips"


def _unavailable(manifest: Manifest, facts: MachineFacts) -> dict[str, list[BackendUnavailable]]:
    """Reasons by configuration. One in bf16 is left out where the bundle computes in bf16 anyway."""
    plain = effective_precision(manifest, DEFAULT_OPTIONS)
    configurations = {
        name: backend_options
        for name, backend_options in CONFIGURATIONS.items()
        if not (backend_options.bf16 and effective_precision(manifest, backend_options) == plain)
    }
    reasons: dict[str, list[BackendUnavailable]] = {name: [] for name in configurations}
    for name, backend_options in configurations.items():
        for graph in manifest.needed_graphs:
            backend = backend_options.backend_of(graph)
            reasons[name] += [
                candidate.unavailable
                for candidate in rank_backends(graph, manifest.graphs[graph], facts, backend_options)
                if candidate.backend == backend and candidate.unavailable is not None
            ]
    return reasons


def _on_gpu(manifest: Manifest, facts: MachineFacts) -> bool:
    """True when a graph's first available candidate is a GPU backend."""
    return any(
        candidate.unavailable is None and candidate.backend in ("tensorrt", "onnxruntime-cuda")
        for name in manifest.needed_graphs
        for candidate in rank_backends(name, manifest.graphs[name], facts, DEFAULT_OPTIONS)
    )


def _needed_bytes(manifest: Manifest, configurations: Sequence[str]) -> float:
    """Memory for all configurations open at once."""
    graphs = sum(manifest.files[manifest.graphs[name].file].bytes for name in manifest.needed_graphs)
    return _MEMORY * graphs * len(configurations)


def available_bytes() -> int | None:
    """Available memory of the machine; None where it is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _key(manifest: Manifest, threads: int | None) -> str:
    """Hash of all that the measurements depend on: bundle, processor and cores, backends and their versions."""
    graphs = {name: manifest.files[manifest.graphs[name].file].sha256 for name in manifest.needed_graphs}
    cores = threads or usable_cores()
    parts = (
        manifest.fingerprint,
        graphs,
        _processor(),
        cores,
        machine_facts().versions,
        MEASURED_CLIPS,
        MIN_PASSES,
        MIN_COSINE,
        MAX_RELATIVE_TIME,
    )
    return sha256_bytes(msgspec.json.encode(parts, order="deterministic"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
