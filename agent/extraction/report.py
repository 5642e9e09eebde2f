"""An extraction's request and report, and its failed clips: how they are reported, remembered and retried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...base.errors import DataError, StorageError
from ...base.files import printable_path, sha256_file
from ...runtime.autotune.measurements import Choice
from ...runtime.backends.opening import GraphPlacement
from ...runtime.backends.options import DEFAULT_OPTIONS, BackendOptions
from ...runtime.bundle.signature import TrustedKeys
from ...runtime.clip_records import WorkerCrash
from ...runtime.pipeline_options import PipelineOptions, PipelineSizes
from ...runtime.video.decoder import DecodeLimits
from .clips import FoundClip
from .store import Failure

GB = 1_000_000_000
MAX_CLIP_GB = 10_000  # that may be allowed


@dataclass(frozen=True)
class ClipWarning:
    """The clip is used, but something is wrong with its file."""

    clip: str
    warning: str


@dataclass(frozen=True)
class ExtractReport:
    """The result of an extraction. Times are of the clips extracted now; None when there were none."""

    clips: int  # found, usable or not
    extracted: int
    skipped: int  # stored already, or the same content under another name
    failed: tuple[FailedClip, ...]
    warnings: tuple[ClipWarning, ...]
    ms_per_clip: float | None  # wall, hashing and storing included, opening the networks not
    stages_ms: dict[str, float]  # means; stages of several clips run at the same time, so their sum may be more
    peak_mb: float  # this process and the decoders, resident, each at its largest
    stopped: bool  # asked to end before all clips were done
    precision: str  # under which the features are stored
    placements: tuple[GraphPlacement, ...]  # where each graph ran; empty when nothing had to be extracted
    choice: Choice | None = None  # result of ``--precision auto``; None when nothing had to be extracted
    used_stored_precision: bool = False  # no precision was chosen, and the store's was used
    # By device what was chosen: decoder processes, clips in one run, captions at once. Empty as placements are.
    pipeline: dict[str, PipelineSizes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # on the store: what training has to know
    crashes: tuple[WorkerCrash, ...] = ()  # worker processes that ended; their clips went to others

    @property
    def nothing_usable(self) -> bool:
        """True when every clip failed: the machine or the folder is the likely cause, not the clips."""
        return len(self.failed) == self.clips > 0


@dataclass(frozen=True)
class ExtractRequest:
    """The clips to extract, the bundle to extract with, and the store."""

    bundle: Path
    videos: Path
    store: Path
    threads: int | None = None  # cores for one network; None: all
    retry: bool = False  # try clips again that failed before
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    trusted: TrustedKeys = ()  # one of them must have signed the bundle; empty: no signature is required
    backend_options: BackendOptions = DEFAULT_OPTIONS  # where the networks run
    training_precision: str | None = None  # the precision that the settings name for training
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)  # of all devices together
    device: str = ""  # where the networks run, as --device: "cuda:0,cuda:1"; empty: the first GPU, or the CPU


HASHING_CODES = {"not_a_file": "video_not_a_file", "too_large": "file_too_large"}  # of base/files.py, for a clip
TIMEOUT_CODE = "video_timeout"
# Failures caused by the file: the same content is not tried again. Others may not occur next time.
REMEMBERED_CODES = frozenset(
    {"video_empty", "video_not_video", "video_no_stream", "video_damaged", "video_too_large", TIMEOUT_CODE}
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


def failed_clip(found: FoundClip, failure: Failure, *, known: bool = False) -> FailedClip:
    """Return the failure with its reason, without the path at its start: the clip's name is shown with it."""
    sentence = without_path(found, failure.message)
    if failure.code == "file_too_large":
        sentence += "; a larger --max-clip-gb (agent.toml: max_clip_gb in [work]) takes it"
    if failure.code == TIMEOUT_CODE:
        sentence += "; a larger --clip-timeout (agent.toml: clip_timeout in [work]) tries it again"
    return FailedClip(found.name, f"{failure.code}: {sentence}", known)


def without_path(found: FoundClip, message: str) -> str:
    return message.removeprefix(printable_path(found.path)).strip(": ")


def still_holds(failure: Failure, limits: DecodeLimits) -> bool:
    """True when a clip that failed like this need not be tried again under ``limits``."""
    if failure.code == TIMEOUT_CODE and (failure.limit_s or 0.0) < limits.timeout_s:
        return False
    return failure.code in REMEMBERED_CODES


def count_by_code(failed: Iterable[FailedClip]) -> dict[str, int]:
    """Count failures by code, most frequent first: for reports that must not name clips."""
    counts = Counter(each.code for each in failed)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
