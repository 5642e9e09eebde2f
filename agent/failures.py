"""Clips that cannot be used: what is said of them, what is remembered, and when they are tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..base.files import printable_path
from ..runtime.video.client import DecodeLimits
from .clips import FoundClip
from .store import Failure

TIMEOUT = "video_timeout"
# Failures that lie in the file: the same content is not tried again. Others may be gone next time.
REMEMBERED = frozenset(
    {"video_empty", "video_not_video", "video_no_stream", "video_damaged", "video_too_large", TIMEOUT}
    | {"video_unknown_codec", "decoder_crashed"}
)


@dataclass(frozen=True)
class FailedClip:
    clip: str  # relative to the video folder
    reason: str  # "code: sentence"
    known: bool = False  # it failed in an earlier run, and was not tried again in this one

    @property
    def code(self) -> str:
        return self.reason.partition(":")[0]


def failed_clip(found: FoundClip, failure: Failure, *, known: bool = False) -> FailedClip:
    """The reason without the path that it begins with: the clip's name stands beside it."""
    sentence = without_path(found, failure.message)
    if failure.code == TIMEOUT:
        sentence += "; a larger --clip-timeout (agent.toml: clip_timeout in [work]) tries it again"
    return FailedClip(found.name, f"{failure.code}: {sentence}", known)


def without_path(found: FoundClip, message: str) -> str:
    return message.removeprefix(printable_path(found.path)).strip(": ")


def still_holds(failure: Failure, limits: DecodeLimits) -> bool:
    """Whether a clip that failed so need not be tried under ``limits``."""
    if failure.code == TIMEOUT and (failure.limit_s is None or failure.limit_s < limits.timeout_s):
        return False
    return failure.code in REMEMBERED


def count_by_code(failed: Iterable[FailedClip]) -> dict[str, int]:
    """How many clips failed of what, most first: what may be told where names may not."""
    counts = Counter(each.code for each in failed)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
