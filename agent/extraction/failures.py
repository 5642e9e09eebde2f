"""Clips that failed: how their failures are reported, remembered and retried."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...base.errors import DataError
from ...base.files import printable_path
from ...runtime.clip_records import Clip
from ...runtime.video.decoder import DecodeLimits
from ...runtime.video.unreadable_files import FILE_CODES
from .clips import FoundClip
from .store import Failure, FeatureStore
from .store_records import file_of

_SEGMENT_OF_NAME = re.compile(r"#t=[0-9.]+,[0-9.]+$")  # no video file's own name ends so
TIMEOUT_CODE = "video_timeout"
# Failures caused by the file: the same content is not tried again. Others may not occur next time.
REMEMBERED_CODES = frozenset(
    {"video_empty", "video_not_video", "video_no_stream", "video_damaged", "video_too_large", TIMEOUT_CODE}
    | {"video_unknown_codec", "decoder_crashed", "segment_outside", "segment_empty"}
)
# Failures that all segments of a file may have for one cause: reported once then.
SHARED_CODES = FILE_CODES | {
    "missing", "unreadable", "outside_folder", "linked_folder", "video_not_a_file", "video_unreadable",
    "file_too_large", "video_changed", "decoder_crashed", "decoder_killed", TIMEOUT_CODE,
}  # fmt: skip


@dataclass(frozen=True)
class FailedClip:
    clip: str  # relative to the video folder; a segment is PATH#t=12.5,17
    reason: str  # "code: sentence"
    known: bool = False  # it failed in an earlier run, and was not tried again in this one
    clips: int = 1  # that failed: more than 1 for a file whose segments all did

    @property
    def code(self) -> str:
        return self.reason.partition(":")[0]


def failed_clip(found: FoundClip, failure: Failure, *, known: bool = False) -> FailedClip:
    """Return the failure with its reason, without the path at its start: the clip's name is shown with it."""
    sentence = without_path(found, failure.message)
    if failure.code == "file_too_large":
        sentence += "; a larger --max-clip-gb (agent.toml: max_clip_gb in [work]) takes it"
    if failure.code == TIMEOUT_CODE:
        sentence += "; a larger --clip-timeout (agent.toml: clip_timeout in [work]) tries it again"
    return FailedClip(found.name, f"{failure.code}: {sentence}", known)


def without_path(found: FoundClip, message: str) -> str:
    return message.removeprefix(printable_path(found.path)).removeprefix(f"#{found.segment}").strip(": ")


def one_per_file(failed: Sequence[FailedClip], listed: Counter[str]) -> tuple[FailedClip, ...]:
    """Return the failures, those of a file's segments as one where all of them failed and the file is the cause.

    ``listed``: how often each clip's name is listed.
    """
    segments = Counter[str]()
    for name, count in listed.items():
        segments[file_of_name(name)] += count
    same: dict[tuple[str, str], list[FailedClip]] = {}
    for each in failed:
        alone = each.code not in SHARED_CODES
        same.setdefault((each.clip if alone else file_of_name(each.clip), each.code), []).append(each)
    shown: list[FailedClip] = []
    for (file, _), group in same.items():
        if len(group) < 2 or len(group) < segments[file]:
            shown += group
            continue
        known = all(each.known for each in group)
        reason = f"{group[0].reason} (all {len(group)} clips of this file)"
        shown.append(FailedClip(file, reason, known, sum(each.clips for each in group)))
    return tuple(shown)


def file_of_name(name: str) -> str:
    """Return the file's name of a clip's: without ``#t=12.5,17``."""
    return _SEGMENT_OF_NAME.sub("", name)


def still_holds(failure: Failure, limits: DecodeLimits) -> bool:
    """True when a clip that failed like this need not be tried again under ``limits``."""
    if failure.code == TIMEOUT_CODE and (failure.limit_s or 0.0) < limits.timeout_s:
        return False
    return failure.code in REMEMBERED_CODES


def count_by_code(failed: Iterable[FailedClip]) -> dict[str, int]:
    """Count failures by code, most frequent first: for reports that must not name clips."""
    counts = Counter[str]()
    for each in failed:
        counts[each.code] += each.clips
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class KnownFailures:
    """Failures of earlier clips and runs: what cannot work is not tried again, unless ``retry`` asks for it."""

    def __init__(self, store: FeatureStore, limits: DecodeLimits, *, retry: bool) -> None:
        self._store, self._limits, self._retry = store, limits, retry
        self._unusable: dict[str, Failure] = {}  # files met in this run no segment of which can work, by SHA-256

    def of(self, clip: Clip, found: FoundClip) -> FailedClip | None:
        """Return the failure of a clip that need not be tried; None when it has to be."""
        if (failure := self._unusable.get(clip.file_sha256 or clip.sha256)) is not None:
            return failed_clip(found, failure)
        if self._retry:
            return None
        remembered = self._store.failure(clip.sha256)
        if remembered is None and clip.segment is not None:
            remembered = self._store.failure(clip.file_sha256)
            if remembered is not None and remembered.code not in FILE_CODES:  # of the whole file, as a clip
                return None
        if remembered is None or not still_holds(remembered, self._limits):
            return None
        return failed_clip(found, remembered, known=True)

    def note(self, clip: Clip, found: FoundClip, error: DataError) -> FailedClip:
        """Remember a failure that the content causes: of the file, where no segment of it can work."""
        failure = Failure(error.code, without_path(found, error.message), self._limits.timeout_s)
        if failure.code in FILE_CODES:
            file_sha256 = clip.file_sha256 or clip.sha256
            self._unusable[file_sha256] = failure
            self._store.note_failure(file_of(found.name, found.segment), file_sha256, failure)
        elif failure.code in REMEMBERED_CODES:
            self._store.note_failure(found.name, clip.sha256, failure)
        return failed_clip(found, failure)

    def note_success(self, clip: Clip) -> None:
        """Forget that the file of a segment could not be used, when a retry could use it."""
        if self._retry and clip.segment is not None:
            self._store.forget_failure(clip.file_sha256)
