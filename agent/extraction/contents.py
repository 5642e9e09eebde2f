"""The contents that an extraction meets: files hashed once each, the first clip with a content, and its copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ...base.errors import DataError, StorageError
from ...base.files import FileStamp, printable_path, sha256_file
from ...runtime.clip_records import Clip, Segment, clip_identity
from ...runtime.video.decoder import DecodeLimits
from .clips import FoundClip
from .failures import FailedClip, failed_clip
from .report import GB, ClipWarning
from .store import Failure
from .store_records import file_of

HASHING_CODES = {"not_a_file": "video_not_a_file", "too_large": "file_too_large"}  # of base/files.py, for a clip


@dataclass(frozen=True)
class Outcome:
    """The outcome of one clip; neither extracted nor failed means skipped."""

    failed: FailedClip | None = None
    extracted: bool = False
    stages_ms: dict[str, float] = field(default_factory=dict)
    warnings: tuple[ClipWarning, ...] = ()


@dataclass(eq=False)
class _Seen:
    """The first clip with an identity, and its copies, which share its outcome."""

    found: FoundClip
    stamp: FileStamp  # of the file when it was hashed
    outcome: Outcome | None = None  # None while it is in progress
    copies: list[FoundClip] = field(default_factory=list)


class _HashedFile(NamedTuple):
    path: Path
    stamp: FileStamp
    sha256: str


class Contents:
    """Identifies an extraction's clips, which come file by file (``in_file_order``), and reports their outcomes."""

    def __init__(self, limits: DecodeLimits, report: Callable[[Outcome], None]) -> None:
        self._limits = limits
        self._report = report
        self._file: _HashedFile | None = None  # hashed last
        self._unusable: tuple[Path, DataError] | None = None  # the last file that has no content to identify
        self._seen: dict[str, _Seen] = {}  # by identity
        self.listed: dict[str, set[str]] = {}  # identities of the clips met, by their files' SHA-256
        self.files: dict[str, set[str]] = {}  # names of the files with each of these contents
        self.unidentified: set[str] = set()  # names of clips whose file could not be hashed
        self.changed: set[str] = set()  # SHA-256 of files that were written to since

    def identify(self, found: FoundClip, stop: Callable[[], bool]) -> Clip | None:
        """Return a clip whose identity is met for the first time; None where its outcome is reported.

        A copy's is reported now or with its first clip. Raises Stopped when ``stop`` returns True while the file is
        hashed.
        """
        try:
            file = self._hashed(found, stop)
        except DataError as error:
            self.unidentified.add(found.name)
            self._report(Outcome(failed_clip(found, Failure(error.code, error.message))))
            return None
        clip = _clip(found, file.sha256)
        self.listed.setdefault(file.sha256, set()).add(clip.sha256)
        self.files.setdefault(file.sha256, set()).add(found.file_name)
        seen = self._seen.setdefault(clip.sha256, _Seen(found, file.stamp))
        if seen.found is found:
            return clip
        seen.copies.append(found)
        if seen.outcome is not None:
            self._finish_copies(seen, seen.outcome)
        return None

    def found(self, clip: Clip) -> FoundClip:
        """Return where a clip that ``identify`` returned was found."""
        return self._seen[clip.sha256].found

    def check_unchanged(self, clip: Clip) -> None:
        """Raise DataError ``video_changed`` when the clip's file is not the one that was hashed, as its stamp."""
        seen = self._seen[clip.sha256]
        if _stamp(seen.found).content != seen.stamp.content:
            self.changed.add(clip.file_sha256 or clip.sha256)
            raise _changed_error(seen.found)

    def finish(self, clip: Clip, outcome: Outcome) -> None:
        """Report the outcome of a clip that ``identify`` returned, and of the copies found so far."""
        seen = self._seen[clip.sha256]
        seen.outcome = outcome
        self._report(outcome)
        self._finish_copies(seen, outcome)

    def _finish_copies(self, seen: _Seen, outcome: Outcome) -> None:
        """Report copies: a copy fails as its content did; its label, if any, is compared only if there are features."""
        while seen.copies:
            copy = seen.copies.pop(0)
            if outcome.failed is not None:
                self._report(Outcome(replace(outcome.failed, clip=copy.name)))
            elif copy.label not in (None, seen.found.label):
                self._report(Outcome(failed_clip(copy, _label_conflict(seen.found))))
            else:
                self._report(Outcome())

    def _hashed(self, found: FoundClip, stop: Callable[[], bool]) -> _HashedFile:
        """Hash a clip's file, unless it was for the clip before. Raises DataError, the same for all clips of a file."""
        if self._unusable is not None and self._unusable[0] == found.path:
            raise self._unusable[1]
        try:
            stamp = _stamp(found)
            if self._file is None or self._file.path != found.path:
                self._file = _HashedFile(found.path, stamp, content_hash(found.path, self._limits, stop))
            elif self._file.stamp.content != stamp.content:
                self.changed.add(self._file.sha256)
                raise _changed_error(found)
        except DataError as error:
            self._unusable = found.path, error
            raise
        return self._file


def content_hash(path: Path, limits: DecodeLimits, stop: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 that a clip is known by.

    Raises DataError: ``file_too_large`` before it is read, ``video_not_a_file``, ``outside_folder``,
    ``video_unreadable``; Stopped, within a moment, when ``stop`` returns True.
    """
    try:
        return sha256_file(path, largest=limits.largest_file, inside=limits.inside, stop=stop)
    except StorageError as error:
        raise DataError(error.message, fix=error.fix, code="video_unreadable") from error
    except DataError as error:
        code = HASHING_CODES.get(error.code, error.code)
        if code != "file_too_large":
            raise DataError(error.message, fix=error.fix, code=code) from error
        limit = f"{limits.largest_file / GB:g} GB"
        raise DataError(
            f"{printable_path(path)} is larger than {limit}, the most that one clip may have",
            fix="cut it into clips, or allow more with --max-clip-gb (agent.toml: max_clip_gb in [work])",
            code=code,
        ) from error


def in_file_order(clips: Iterable[FoundClip], *, latest_first: bool = False) -> list[FoundClip]:
    """Return the clips file by file, each file's segments by time after the file itself, or against time before it.

    Files without any label come last: of a content's copies the first one met counts. ``latest_first`` is for a retry:
    of a file whose first segments cannot be read, the others may be.
    """
    by_file: dict[Path, list[FoundClip]] = {}
    for clip in clips:
        by_file.setdefault(clip.path, []).append(clip)
    whole = Segment(-1, 0)
    return [
        clip
        for same in sorted(by_file.values(), key=lambda same: all(clip.label is None for clip in same))
        for clip in sorted(same, key=lambda clip: clip.segment or whole, reverse=latest_first)
    ]


def _clip(found: FoundClip, file_sha256: str) -> Clip:
    return Clip(
        path=found.path,
        sha256=clip_identity(file_sha256, found.segment),
        label=found.label,
        group=found.group,
        segment=found.segment,
        file_sha256=file_sha256 if found.segment else "",
        person=found.person,
        camera=found.camera,
    )


def _stamp(found: FoundClip) -> FileStamp:
    """Return the file's stamp, which changes when the file is written to or replaced."""
    try:
        return FileStamp.of(found.path)
    except OSError as error:
        raise DataError(
            f"cannot read {file_of(found.name, found.segment)}: {error.strerror}",
            fix="check that this user may read it",
            code="video_unreadable",
        ) from error


def _changed_error(found: FoundClip) -> DataError:
    return DataError(
        f"{file_of(found.name, found.segment)} changed while it was read; the next run takes it",
        fix="run the command again when nothing writes to the file any more",
        code="video_changed",
    )


def _label_conflict(first: FoundClip) -> Failure:
    label = first.label or "unknown"
    return Failure(
        "label_conflict", f"has the same content as {first.name}, which is labelled {label}: that label is used"
    )
