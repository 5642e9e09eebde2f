"""Extraction of a folder of clips into the feature store, for ``flamest-agent extract`` and the daemon.

Every clip, a file or a segment of one, is a row of its own, identified by its content, and is stored as soon as it is
there, with those that are there at the same time: being killed costs at most the clips in progress, and the next run
resumes there. A clip that cannot be used is reported and skipped; it is not tried again until its content changes, or
``retry`` asks for it. A clip whose file is listed otherwise now (other segments, or whole) keeps its features without a
label.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ...base.errors import DataError
from ...base.files import Stopped, printable_path
from ...runtime.bundle.opening import open_manifest
from ...runtime.clip_records import Clip
from ...runtime.extractor import ExtractionResult
from .clips import ClipFolder, FoundClip, check_videos_folder, scan_clips
from .contents import Contents, Outcome, in_file_order
from .failures import REMEMBERED_CODES, FailedClip, KnownFailures, one_per_file
from .groups import DEFAULT_RULES, ClipRules
from .nested_folders import is_from_around
from .networks_on_demand import NetworksOnDemand
from .report import ClipWarning, ExtractReport, ExtractRequest
from .store import FeatureStore
from .unlisted import take_labels_of_unlisted

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
    return extract_clips(request, clips_to_extract(request.videos, request.rules), on_clip=on_clip, stop=stop)


def clips_to_extract(videos: Path, rules: ClipRules = DEFAULT_RULES) -> ClipFolder:
    """Return the folder's clips. Raises DataError ``no_clips``, with a fix, when there are none."""
    check_videos_folder(videos)
    folder = scan_clips(videos, rules=rules)
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
    outcomes: list[Outcome] = []
    request = replace(request, limits=replace(request.limits, inside=folder.root))

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        on_clip()

    open_manifest(request.bundle, request.trusted)  # a wrong --bundle is reported before a store is created
    with FeatureStore.open(request.store) as store:
        extraction = _Extraction(request, folder, store, _Callbacks(report, notice))
        with closing(extraction.networks):
            extraction.run(in_file_order(folder.clips, latest_first=request.retry), stop)
            if len(outcomes) == len(folder.clips):
                take_labels_of_unlisted(store, folder, extraction.contents, request.limits, stop)
            return _report(folder, outcomes, extraction)


class _Callbacks(NamedTuple):
    """The callbacks of an extraction in progress."""

    report: Callable[[Outcome], None]
    notice: Callable[[str], None]


class _Extraction:
    """The state of one extraction: the store, the extractor once it is needed, the contents seen."""

    def __init__(self, request: ExtractRequest, folder: ClipFolder, store: FeatureStore, callbacks: _Callbacks) -> None:
        self._folder, self._store = folder, store
        manifest, _ = open_manifest(request.bundle, request.trusted)
        self._fingerprint = manifest.fingerprint
        self.networks = NetworksOnDemand(request, manifest, store, callbacks.notice)
        self.contents = Contents(request.limits, callbacks.report)
        self._failures = KnownFailures(store, request.limits, retry=request.retry)
        self.spent_s = 0.0  # from the first clip's begin to the last one's end

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
            extractor = self.networks.open(chain([first], _recorded(new_clips, measured_with)), stop)
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

    def _new_clips(self, clips: Iterable[FoundClip], stop: Callable[[], bool]) -> Iterator[Clip]:
        """Yield the clips to extract; the outcome of the others is reported on the way."""
        for found in clips:
            if stop():
                return
            try:
                clip = self.contents.identify(found, stop)
            except Stopped:
                return
            if clip is None:
                continue
            known = self._known_outcome(clip, found)
            if known is None:
                yield clip
            else:
                self.contents.finish(clip, known)

    def _known_outcome(self, clip: Clip, found: FoundClip) -> Outcome | None:
        """Return the outcome of earlier runs, or of another segment of the file; None when it has to be extracted."""
        if self._store.has(clip.sha256, self._fingerprint, self.networks.precision):
            listed, name = self._as_listed(clip)
            self._store.note_clip(listed, name=name)
            return Outcome()
        failed = self._failures.of(clip, found)
        return None if failed is None else Outcome(failed)

    def _as_listed(self, clip: Clip) -> tuple[Clip, str]:
        """Return the clip with what is to be stored of it, and its name.

        A folder inside the one that gave the clip its label has no class for it: that is no reason to forget the label.
        """
        name = self.contents.found(clip).name
        if clip.label is None and not self._folder.listed:
            known = self._store.labelled(clip.sha256)
            if known is not None and is_from_around(known.path, name, self._folder.root):
                kept = replace(clip, label=known.label, group=known.group, person=known.person, camera=known.camera)
                return kept, known.path
        return clip, name

    def _store_results(self, extracted: Sequence[ExtractionResult]) -> None:
        """Store the features, or the reasons why there are none, and report the outcomes."""
        problems = [self._problem(each) for each in extracted]
        self._store.add_all(
            (clip, each.features, name)
            for each, problem in zip(extracted, problems, strict=True)
            if problem is None and each.features is not None
            for clip, name in [self._as_listed(each.clip)]
        )
        for each, problem in zip(extracted, problems, strict=True):
            found, features = self.contents.found(each.clip), each.features
            if problem is not None:
                outcome = Outcome(self._failures.note(each.clip, found, problem))
            else:
                assert features is not None
                self._failures.note_success(each.clip)
                warnings = tuple(ClipWarning(found.name, warning) for warning in features.warnings)
                outcome = Outcome(extracted=True, stages_ms=features.stages_ms, warnings=warnings)
            self.contents.finish(each.clip, outcome)

    def _problem(self, extracted: ExtractionResult) -> DataError | None:
        """The reason why there is nothing to store, above all that the file is another one now; None for features."""
        problem = extracted.error
        if extracted.features is None and problem is None:
            return DataError("was not extracted", fix="run the command again")
        if problem is not None and problem.code not in REMEMBERED_CODES:
            return problem
        try:
            self.contents.check_unchanged(extracted.clip)
        except DataError as changed:
            return changed
        return problem

    @property
    def unlisted(self) -> int:
        """Clips of this bundle in the store that have no label because they are listed no more."""
        return self._store.count_unlisted(self._fingerprint)

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


def _recorded(clips: Iterator[Clip], into: list[Clip]) -> Iterator[Clip]:
    """Yield the clips, and append each to ``into``."""
    for clip in clips:
        into.append(clip)
        yield clip


def _report(folder: ClipFolder, outcomes: list[Outcome], extraction: _Extraction) -> ExtractReport:
    problems = [FailedClip(problem.name, f"{problem.code}: {problem.reason}") for problem in folder.problems]
    failed = [outcome.failed for outcome in outcomes if outcome.failed is not None]
    names = Counter(clip.name for clip in folder.clips) + Counter(problem.name for problem in folder.problems)
    networks = extraction.networks
    stages = [outcome.stages_ms for outcome in outcomes if outcome.extracted]
    return ExtractReport(
        clips=len(folder.clips) + len(folder.problems),
        extracted=len(stages),
        skipped=len(outcomes) - len(stages) - len(failed),
        failed=one_per_file([*problems, *failed], names),
        warnings=tuple(warning for outcome in outcomes for warning in outcome.warnings),
        ms_per_clip=extraction.spent_s * 1e3 / len(stages) if stages else None,
        stages_ms={name: fmean(stage[name] for stage in stages) for name in stages[0]} if stages else {},
        peak_mb=networks.peak_mb,
        stopped=len(outcomes) < len(folder.clips),
        precision=networks.precision,
        placements=networks.placements,
        choice=networks.choice,
        used_stored_precision=networks.used_stored_precision,
        pipeline=networks.pipeline,
        crashes=networks.crashes,
        notes=extraction.notes,
        unlisted=extraction.unlisted,
    )
