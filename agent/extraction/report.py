"""An extraction's request and report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.autotune.measurements import Choice
from ...runtime.backends.opening import GraphPlacement
from ...runtime.backends.options import DEFAULT_OPTIONS, BackendOptions
from ...runtime.bundle.signature import TrustedKeys
from ...runtime.clip_records import WorkerCrash
from ...runtime.pipeline_options import PipelineOptions, PipelineSizes
from ...runtime.video.decoder import DecodeLimits
from .failures import FailedClip
from .groups import DEFAULT_RULES, ClipRules

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
    unlisted: int = 0  # clips of the bundle in the store that are listed no more: kept without a label

    @property
    def failed_clips(self) -> int:
        """Clips that failed: a file whose segments all did counts as many."""
        return sum(failed.clips for failed in self.failed)

    @property
    def nothing_usable(self) -> bool:
        """True when every clip failed: the machine or the folder is the likely cause, not the clips."""
        return self.failed_clips == self.clips > 0


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
    rules: ClipRules = DEFAULT_RULES  # for the clips' groups and classes
