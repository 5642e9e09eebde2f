"""Extraction of a folder of clips into the feature store, for ``flamest-agent extract`` and the daemon.

Every clip is a row of its own, identified by the hash of its content, and is stored as soon as it is there, with those
that are there at the same time: being killed costs at most the clips in progress, and the next run resumes there. A
clip that cannot be used is reported and skipped; it is not tried again until its content changes, or ``retry`` asks for
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ...base.errors import DataError
from ...base.files import FileStamp, Stopped, printable_path
from ...base.process import peak_resident_kb
from ...runtime.autotune.measurements import Choice
from ...runtime.autotune.selection import AutotuneRequest
from ...runtime.backends.opening import GraphPlacement, OpeningOptions, effective_precision
from ...runtime.bundle.opening import open_manifest
from ...runtime.clip_records import Clip, WorkerCrash
from ...runtime.device_workers import DeviceWorkers
from ...runtime.extractor import ExtractionResult, Extractor, open_extractor
from ...runtime.pipeline_options import PipelineSizes
from .chosen_devices import chosen_facts, worker_setups
from .clips import ClipFolder, FoundClip, check_videos_folder, scan_clips
from .precision_policy import AutotuneSettings, PrecisionPolicy
from .report import (
    REMEMBERED_CODES,
    ClipWarning,
    ExtractReport,
    ExtractRequest,
    FailedClip,
    content_hash,
    failed_clip,
    still_holds,
    without_path,
)
from .store import Failure, FeatureStore

IMPORTED = "imported:"  # before the name of embeddings that no bundle made
MOST_STORED_TOGETHER = 256  # clips; being killed costs no more than these and those in progress


def extract_folder(
    request: ExtractRequest, *, on_clip: Callable[[], None] = lambda: None, stop: Callable[[], bool] = lambda: False
) -> ExtractReport:
    """Bring the store up to date with the folder of the request.

    ``on_clip`` is called after each clip, ``stop`` asked before and after each. Raises DataError when the
    folder holds no clip, the bundle is not whole or the store is damaged; LockedError and
    StorageError as the store does.
    """
    return extract_clips(request, clips_to_extract(request.videos), on_clip=on_clip, stop=stop)


def clips_to_extract(videos: Path) -> ClipFolder:
    """Return the folder's clips. Raises DataError ``no_clips``, with a fix, when there are none."""
    check_videos_folder(videos)
    folder = scan_clips(videos)
    if not folder.clips and not folder.problems:
        raise DataError(
            f"{printable_path(videos)} holds no video files",
            fix="put clips into folders named by class (LABEL/clip.mp4), or write a labels.csv",
            code="no_clips",
        )
    return folder


def extract_clips(
    request: ExtractRequest,
    folder: ClipFolder,
    *,
    on_clip: Callable[[], None],
    stop: Callable[[], bool],
    notice: Callable[[str], None] = lambda _: None,
) -> ExtractReport:
    """Extract a folder that has been scanned already; ``notice`` is called before something that takes minutes."""
    outcomes: list[_Outcome] = []
    request = replace(request, limits=replace(request.limits, inside=folder.root))

    def report(outcome: _Outcome) -> None:
        outcomes.append(outcome)
        on_clip()

    open_manifest(request.bundle, request.trusted)  # a wrong --bundle is reported before a store is created
    with FeatureStore.open(request.store) as store:
        with closing(_Extraction(request, store, _Callbacks(report, notice))) as extraction:
            extraction.run(folder.clips, stop)
            return _report(folder, outcomes, extraction)


@dataclass(frozen=True)
class _Outcome:
    """The outcome of one clip; neither extracted nor failed means skipped."""

    failed: FailedClip | None = None
    extracted: bool = False
    stages_ms: dict[str, float] = field(default_factory=dict)
    warnings: tuple[ClipWarning, ...] = ()


@dataclass(eq=False)
class _Seen:
    """The first file with a content, and its copies, which share its outcome."""

    found: FoundClip
    stamp: FileStamp  # of the file when it was hashed
    outcome: _Outcome | None = None  # None while it is in progress
    copies: list[FoundClip] = field(default_factory=list)


class _Callbacks(NamedTuple):
    """The callbacks of an extraction in progress."""

    report: Callable[[_Outcome], None]
    notice: Callable[[str], None]


class _Extraction:
    """The state of one extraction: the store, the extractor once it is needed, the contents seen."""

    def __init__(self, request: ExtractRequest, store: FeatureStore, callbacks: _Callbacks) -> None:
        self._request = request
        self._report, self._notice = callbacks
        self._store = store
        self._manifest, _ = open_manifest(request.bundle, request.trusted)
        self._fingerprint = self._manifest.fingerprint
        self._precision_policy = PrecisionPolicy.of(
            self._manifest, request.backend_options, store, request.store, request.training_precision
        )
        self.precision = self._precision_policy.precision
        self.choice: Choice | None = None
        self._seen: dict[str, _Seen] = {}  # by content
        self.spent_s = 0.0  # from the first clip's begin to the last one's end
        self._extractor: Extractor | DeviceWorkers | None = None

    def run(self, clips: Sequence[FoundClip], stop: Callable[[], bool]) -> None:
        """Extract all clips that are not in the store; a problem with one becomes its outcome.

        When ``stop`` returns True, the clips in progress are left for the next run.
        """
        new_clips = self._new_clips(clips, stop)
        first = next(new_clips, None)
        if first is None:
            return
        measured_with = [first]
        try:
            self._resolve_options(chain([first], _recorded(new_clips, measured_with)), stop)
            if stop():  # perhaps before the options were resolved
                return
            extractor = self._open_extractor(stop)
        except Stopped:
            return
        started = time.perf_counter()
        coming = extractor.extract_all(chain(measured_with, new_clips), stop=stop)
        ready: list[ExtractionResult] = []  # that a transaction stores together: a commit takes milliseconds
        with closing(coming) as extracting, suppress(Stopped):
            for extracted in extracting:
                ready.append(extracted)
                if extracted.more and len(ready) < MOST_STORED_TOGETHER:
                    continue
                self._store_results(ready)
                ready = []
                self.spent_s = time.perf_counter() - started
                if stop():
                    return

    def _resolve_options(self, clips: Iterator[Clip], stop: Callable[[], bool]) -> None:
        """Choose how the networks are opened; ``clips`` may be used to measure."""
        request = self._request
        autotune = AutotuneRequest(
            request.bundle,
            threads=request.threads,
            limits=request.limits,
            trusted=request.trusted,
            facts=chosen_facts(request),
        )
        backend_options, self.choice = self._precision_policy.resolve(
            AutotuneSettings(autotune, self._notice, stop), clips
        )
        self._request = replace(request, backend_options=backend_options)
        self.precision = effective_precision(self._manifest, backend_options)

    def _new_clips(self, clips: Sequence[FoundClip], stop: Callable[[], bool]) -> Iterator[Clip]:
        """Yield the clips to extract; the outcome of the others is reported on the way."""
        for found in clips:
            if stop():
                return
            try:
                clip = self._new_clip(found, stop)
            except Stopped:
                return
            if clip is not None:
                yield clip

    def _new_clip(self, found: FoundClip, stop: Callable[[], bool]) -> Clip | None:
        """Return the clip if it has to be extracted; otherwise report its outcome, now or with its first file.

        Raises Stopped when ``stop`` returns True while the file is hashed.
        """
        try:
            stamp = _stamp(found)
            clip = Clip(found.path, content_hash(found.path, self._request.limits, stop), found.label, found.group)
        except DataError as error:
            self._report(_Outcome(failed_clip(found, Failure(error.code, error.message))))
            return None
        seen = self._seen.setdefault(clip.sha256, _Seen(found, stamp))
        if seen.found is not found:
            seen.copies.append(found)
            if seen.outcome is not None:
                self._finish_copies(seen, seen.outcome)
            return None
        known = self._known_outcome(clip, found)
        if known is not None:
            self._finish(seen, known)
            return None
        return clip

    def _known_outcome(self, clip: Clip, found: FoundClip) -> _Outcome | None:
        """Return the outcome of earlier runs for a content; None when it has to be extracted."""
        if self._store.has(clip.sha256, self._fingerprint, self.precision):
            self._store.note_clip(clip, name=found.name)
            return _Outcome()
        failure = None if self._request.retry else self._store.failure(clip.sha256)
        if failure is not None and still_holds(failure, self._request.limits):
            return _Outcome(failed_clip(found, failure, known=True))
        return None

    def _finish(self, seen: _Seen, outcome: _Outcome) -> None:
        """Report the outcome of a content's first file, and of the copies found so far."""
        seen.outcome = outcome
        self._report(outcome)
        self._finish_copies(seen, outcome)

    def _finish_copies(self, seen: _Seen, outcome: _Outcome) -> None:
        """Report copies: a copy fails as its content did; its label is compared only if there are features."""
        while seen.copies:
            copy = seen.copies.pop(0)
            if outcome.failed is not None:
                self._report(_Outcome(replace(outcome.failed, clip=copy.name)))
            elif copy.label != seen.found.label:
                self._report(_Outcome(failed_clip(copy, _label_conflict(seen.found))))
            else:
                self._report(_Outcome())

    def _store_results(self, extracted: Sequence[ExtractionResult]) -> None:
        """Store the features, or the reasons why there are none, and report the outcomes."""
        problems = [self._problem(each) for each in extracted]
        self._store.add_all(
            (each.clip, each.features, self._seen[each.clip.sha256].found.name)
            for each, problem in zip(extracted, problems, strict=True)
            if problem is None and each.features is not None
        )
        for each, problem in zip(extracted, problems, strict=True):
            seen, features = self._seen[each.clip.sha256], each.features
            if problem is not None:
                outcome = self._failed(seen, each.clip, problem)
            else:
                assert features is not None
                warnings = tuple(ClipWarning(seen.found.name, warning) for warning in features.warnings)
                outcome = _Outcome(extracted=True, stages_ms=features.stages_ms, warnings=warnings)
            self._finish(seen, outcome)

    def _problem(self, extracted: ExtractionResult) -> DataError | None:
        """The reason why there is nothing to store; None when there are features."""
        seen = self._seen[extracted.clip.sha256]
        if extracted.features is None:
            return extracted.error or DataError("was not extracted", fix="run the command again")
        try:
            if _stamp(seen.found).content == seen.stamp.content:
                return None
        except DataError as error:
            return error
        return DataError(
            f"{seen.found.name} changed while it was read; the next run takes it",
            fix="run the command again when nothing writes to the file any more",
            code="video_changed",
        )

    def _failed(self, seen: _Seen, clip: Clip, error: DataError) -> _Outcome:
        failure = Failure(error.code, without_path(seen.found, error.message), self._request.limits.timeout_s)
        if failure.code in REMEMBERED_CODES:
            self._store.note_failure(seen.found.name, clip.sha256, failure)
        return _Outcome(failed_clip(seen.found, failure))

    def close(self) -> None:
        if self._extractor is not None:
            self._extractor.close()

    @property
    def used_stored_precision(self) -> bool:
        return self._extractor is not None and self._precision_policy.uses_stored_precision

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each other bundle whose features the store holds: training takes those of one alone."""
        others: dict[str, int] = {}
        for kind in self._store.kinds():
            if kind.fingerprint != self._fingerprint and not kind.fingerprint.startswith(IMPORTED):
                others[kind.fingerprint] = max(others.get(kind.fingerprint, 0), kind.clips)
        return tuple(
            f"the store has {clips} clips of another bundle (fingerprint {fingerprint[:12]}); to train with "
            f"this one's: flamest-agent train --fingerprint {self._fingerprint[:12]}"
            for fingerprint, clips in others.items()
        )

    @property
    def placements(self) -> tuple[GraphPlacement, ...]:
        return tuple(self._extractor.placements.values()) if self._extractor else ()

    @property
    def pipeline(self) -> dict[str, PipelineSizes]:
        return self._extractor.pipeline if self._extractor else {}

    @property
    def crashes(self) -> tuple[WorkerCrash, ...]:
        return tuple(self._extractor.crashes) if self._extractor else ()

    @property
    def peak_mb(self) -> float:
        own = peak_resident_kb() * 1024 / 1e6
        if isinstance(self._extractor, DeviceWorkers):
            return own + self._extractor.peak_mb
        return own + (self._extractor.decoder_peak_mb if self._extractor else 0.0)

    def _open_extractor(self, stop: Callable[[], bool]) -> Extractor | DeviceWorkers:
        """Open the networks, which takes seconds, when the first clip needs them. Raises Stopped."""
        if self._extractor is None:
            request = self._request
            if setups := worker_setups(request):
                self._extractor = DeviceWorkers.open(setups, notice=self._notice, stop=stop)
                return self._extractor
            opening = OpeningOptions(
                request.backend_options, request.threads, chosen_facts(request), notice=self._notice, stop=stop
            )
            self._extractor = open_extractor(
                request.bundle,
                opening=opening,
                pipeline=request.pipeline,
                limits=request.limits,
                trusted=request.trusted,
            )
        return self._extractor


def _recorded(clips: Iterator[Clip], into: list[Clip]) -> Iterator[Clip]:
    """Yield the clips, and append each to ``into``."""
    for clip in clips:
        into.append(clip)
        yield clip


def _stamp(found: FoundClip) -> FileStamp:
    """Return the file's stamp, which changes when the file is written to or replaced."""
    try:
        return FileStamp.of(found.path)
    except OSError as error:
        raise DataError(
            f"cannot read {found.name}: {error.strerror}",
            fix="check that this user may read it",
            code="video_unreadable",
        ) from error


def _label_conflict(first: FoundClip) -> Failure:
    label = first.label or "unknown"
    return Failure(
        "label_conflict", f"has the same content as {first.name}, which is labelled {label}: that label is used"
    )


def _report(folder: ClipFolder, outcomes: list[_Outcome], extraction: _Extraction) -> ExtractReport:
    problems = [FailedClip(problem.name, f"{problem.code}: {problem.reason}") for problem in folder.problems]
    failed = [outcome.failed for outcome in outcomes if outcome.failed is not None]
    stages = [outcome.stages_ms for outcome in outcomes if outcome.extracted]
    return ExtractReport(
        clips=len(folder.clips) + len(folder.problems),
        extracted=len(stages),
        skipped=len(outcomes) - len(stages) - len(failed),
        failed=(*problems, *failed),
        warnings=tuple(warning for outcome in outcomes for warning in outcome.warnings),
        ms_per_clip=extraction.spent_s * 1e3 / len(stages) if stages else None,
        stages_ms={name: fmean(stage[name] for stage in stages) for name in stages[0]} if stages else {},
        peak_mb=extraction.peak_mb,
        stopped=len(outcomes) < len(folder.clips),
        precision=extraction.precision,
        placements=extraction.placements,
        choice=extraction.choice,
        used_stored_precision=extraction.used_stored_precision,
        pipeline=extraction.pipeline,
        crashes=extraction.crashes,
        notes=extraction.notes,
    )
