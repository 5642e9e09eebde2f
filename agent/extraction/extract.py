"""A folder of clips into the feature store: what ``flamest-agent extract`` and the daemon do.

Every clip is stored by itself, known by the hash of its content: being killed costs at most the few
clips in hand, and the next run goes on where this one ended. A clip that cannot be used is
reported and skipped; it is not tried again until its content changes, or ``retry`` asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ...base.errors import DataError, StorageError
from ...base.files import FileStamp, printable_path, sha256_file
from ...base.process import peak_resident_kb
from ...runtime.autotune.records import Choice
from ...runtime.autotune.selection import AutotuneRequest
from ...runtime.backends.opening import Opening, Place, effective_precision
from ...runtime.bundle.opening import open_manifest
from ...runtime.extractor import Extracted, Extractor, open_extractor
from ...runtime.records import Clip
from .clips import ClipFolder, FoundClip, scan_clips
from .precision_policy import Measuring, PrecisionPolicy
from .records import (
    REMEMBERED,
    ClipWarning,
    ExtractReport,
    ExtractRequest,
    FailedClip,
    failed_clip,
    still_holds,
    without_path,
)
from .store import Failure, FeatureStore


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
    """The folder's clips; DataError ``no_clips`` with the way out when there are none."""
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
    """The same for a folder that has been looked through already; ``notice`` is told what takes minutes."""
    outcomes: list[_Outcome] = []

    def tell(outcome: _Outcome) -> None:
        outcomes.append(outcome)
        on_clip()

    open_manifest(request.bundle, request.trusted)  # a wrong --bundle is said before a store is made
    with FeatureStore.open(request.store) as store:
        with closing(_Work(request, store, _Listeners(tell, notice))) as work:
            work.bring_in(folder.clips, stop)
            return _report(folder, outcomes, work)


@dataclass(frozen=True)
class _Outcome:
    """What became of one clip; neither extracted nor failed means skipped."""

    failed: FailedClip | None = None
    extracted: bool = False
    stages_ms: dict[str, float] = field(default_factory=dict)
    warnings: tuple[ClipWarning, ...] = ()


@dataclass(eq=False)
class _Seen:
    """A content: the first file of it, and those that wait for what becomes of that one."""

    found: FoundClip
    stamp: FileStamp  # how the file looked then
    outcome: _Outcome | None = None  # None while it is under way
    copies: list[FoundClip] = field(default_factory=list)


class _Listeners(NamedTuple):
    """Who hears of an extraction while it goes on."""

    tell: Callable[[_Outcome], None]
    notice: Callable[[str], None]


class _Work:
    """One extraction's open things: the store, the extractor once it is needed, the contents seen."""

    def __init__(self, request: ExtractRequest, store: FeatureStore, listeners: _Listeners) -> None:
        self._request = request
        self._tell, self._notice = listeners
        self._store = store
        self._manifest, _ = open_manifest(request.bundle, request.trusted)
        self._fingerprint = self._manifest.fingerprint
        self._standing = PrecisionPolicy.of(
            self._manifest, request.backend_options, store, request.store, request.trained_on
        )
        self.precision = self._standing.precision
        self.choice: Choice | None = None
        self._seen: dict[str, _Seen] = {}  # by content
        self.spent_s = 0.0  # from the first clip's begin to the last one's end
        self._extractor: Extractor | None = None

    def bring_in(self, clips: Sequence[FoundClip], stop: Callable[[], bool]) -> None:
        """Extract all clips that are not known; whatever is wrong with one becomes its outcome.

        When ``stop`` says so, the clips that are under way are left for the next run.
        """
        coming = self._unknown(clips, stop)
        first = next(coming, None)
        if first is None:
            return
        looked_at = [first]
        self._settle(chain([first], _noted(coming, looked_at)), stop)
        if stop():  # perhaps before it was known how
            return
        extractor = self._ready()
        started = time.perf_counter()
        with closing(extractor.extract_all(chain(looked_at, coming))) as extracting:
            for extracted in extracting:
                self._conclude(self._seen[extracted.clip.sha256], self._keep(extracted))
                self.spent_s = time.perf_counter() - started
                if stop():
                    return

    def _settle(self, clips: Iterator[Clip], stop: Callable[[], bool]) -> None:
        """How the networks are opened, now that there is a clip for them; ``clips`` may be measured with."""
        request = self._request
        question = AutotuneRequest(
            request.bundle, threads=request.threads, limits=request.limits, trusted=request.trusted
        )
        backend_options, self.choice = self._standing.settle(Measuring(question, self._notice, stop), clips)
        self._request = replace(request, backend_options=backend_options)
        self.precision = effective_precision(self._manifest, backend_options)

    def _unknown(self, clips: Sequence[FoundClip], stop: Callable[[], bool]) -> Iterator[Clip]:
        """The clips to extract; what is known of the others is told on the way."""
        for found in clips:
            if stop():
                return
            clip = self._look_up(found)
            if clip is not None:
                yield clip

    def _look_up(self, found: FoundClip) -> Clip | None:
        """The clip, if it has to be extracted. Otherwise what is known of it is told, now or with its first file."""
        try:
            stamp = _stamp(found)
            clip = Clip(found.path, _content(found), found.label, found.group)
        except DataError as error:
            self._tell(_Outcome(failed_clip(found, Failure(error.code, error.message))))
            return None
        seen = self._seen.setdefault(clip.sha256, _Seen(found, stamp))
        if seen.found is not found:
            seen.copies.append(found)
            if seen.outcome is not None:
                self._conclude_copies(seen, seen.outcome)
            return None
        known = self._known(clip, found)
        if known is not None:
            self._conclude(seen, known)
            return None
        return clip

    def _known(self, clip: Clip, found: FoundClip) -> _Outcome | None:
        """What earlier runs leave to say of a content; None when it has to be extracted."""
        if self._store.has(clip.sha256, self._fingerprint, self.precision):
            self._store.note_clip(clip, name=found.name)
            return _Outcome()
        failure = None if self._request.retry else self._store.failure(clip.sha256)
        if failure is not None and still_holds(failure, self._request.limits):
            return _Outcome(failed_clip(found, failure, known=True))
        return None

    def _conclude(self, seen: _Seen, outcome: _Outcome) -> None:
        """Tell what became of a content's first file, and thereby of the copies that have come so far."""
        seen.outcome = outcome
        self._tell(outcome)
        self._conclude_copies(seen, outcome)

    def _conclude_copies(self, seen: _Seen, outcome: _Outcome) -> None:
        """A copy fails as its content did; its label is looked at only where there are numbers that it could be of."""
        while seen.copies:
            copy = seen.copies.pop(0)
            if outcome.failed is not None:
                self._tell(_Outcome(replace(outcome.failed, clip=copy.name)))
            elif copy.label != seen.found.label:
                self._tell(_Outcome(failed_clip(copy, _label_conflict(seen.found))))
            else:
                self._tell(_Outcome())

    def _keep(self, extracted: Extracted) -> _Outcome:
        """What was extracted goes to the store, or the reason why nothing was."""
        clip, features = extracted.clip, extracted.features
        seen = self._seen[clip.sha256]
        try:
            if features is None:
                raise extracted.error or DataError("was not extracted")
            if _stamp(seen.found) != seen.stamp:
                raise DataError(
                    f"{seen.found.name} changed while it was read; the next run takes it", code="video_changed"
                )
        except DataError as error:
            failure = Failure(error.code, without_path(seen.found, error.message), self._request.limits.timeout_s)
            if failure.code in REMEMBERED:
                self._store.note_failure(seen.found.name, clip.sha256, failure)
            return _Outcome(failed_clip(seen.found, failure))
        self._store.add(clip, features, name=seen.found.name)
        warnings = tuple(ClipWarning(seen.found.name, warning) for warning in features.warnings)
        return _Outcome(extracted=True, stages_ms=features.stages_ms, warnings=warnings)

    def close(self) -> None:
        if self._extractor is not None:
            self._extractor.close()

    @property
    def followed(self) -> bool:
        return self._extractor is not None and self._standing.follows

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(self._extractor.places.values()) if self._extractor else ()

    @property
    def peak_mb(self) -> float:
        own = peak_resident_kb() * 1024 / 1e6
        return own + (self._extractor.decoder_peak_mb if self._extractor else 0.0)

    def _ready(self) -> Extractor:
        """The networks take seconds to open: not before there is a clip that needs them."""
        if self._extractor is None:
            request = self._request
            opening = Opening(request.backend_options, request.threads, notice=self._notice)
            self._extractor = open_extractor(
                request.bundle, opening=opening, limits=request.limits, trusted=request.trusted
            )
        return self._extractor


def _noted(clips: Iterator[Clip], into: list[Clip]) -> Iterator[Clip]:
    """The clips, each kept in ``into`` for whoever comes after."""
    for clip in clips:
        into.append(clip)
        yield clip


def _content(found: FoundClip) -> str:
    try:
        return sha256_file(found.path)
    except StorageError as error:
        raise DataError(error.message, code="video_unreadable") from error


def _stamp(found: FoundClip) -> FileStamp:
    """Changes when the file is written to or replaced."""
    try:
        return FileStamp.of(found.path)
    except OSError as error:
        raise DataError(f"cannot read {found.name}: {error.strerror}", code="video_unreadable") from error


def _label_conflict(first: FoundClip) -> Failure:
    label = first.label or "unknown"
    return Failure(
        "label_conflict", f"has the same content as {first.name}, which is labelled {label}: that label is kept"
    )


def _report(folder: ClipFolder, outcomes: list[_Outcome], work: _Work) -> ExtractReport:
    problems = [FailedClip(problem.name, f"{problem.code}: {problem.reason}") for problem in folder.problems]
    failed = [outcome.failed for outcome in outcomes if outcome.failed is not None]
    stages = [outcome.stages_ms for outcome in outcomes if outcome.extracted]
    return ExtractReport(
        clips=len(folder.clips) + len(folder.problems),
        extracted=len(stages),
        skipped=len(outcomes) - len(stages) - len(failed),
        failed=(*problems, *failed),
        warnings=tuple(warning for outcome in outcomes for warning in outcome.warnings),
        ms_per_clip=work.spent_s * 1e3 / len(stages) if stages else None,
        stages_ms={name: fmean(stage[name] for stage in stages) for name in stages[0]} if stages else {},
        peak_mb=work.peak_mb,
        stopped=len(outcomes) < len(folder.clips),
        precision=work.precision,
        places=work.places,
        choice=work.choice,
        followed=work.followed,
    )
