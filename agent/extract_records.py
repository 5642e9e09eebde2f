"""What an extraction is asked for, and what it says of itself in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.backends.autotune_records import Choice
from ..runtime.backends.opening import Place
from ..runtime.backends.options import NO_WISHES, Wishes
from ..runtime.bundle.signature import TrustedKeys
from ..runtime.video.client import DecodeLimits
from .failures import FailedClip


@dataclass(frozen=True)
class ClipWarning:
    """The clip is used, but something is wrong with its file."""

    clip: str
    warning: str


@dataclass(frozen=True)
class ExtractReport:
    """How an extraction went. Times are of the clips extracted now; None when there were none."""

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
    places: tuple[Place, ...]  # where each graph ran; empty when nothing had to be extracted
    choice: Choice | None = None  # what ``--precision auto`` came to; None when nothing had to be extracted
    followed: bool = False  # nothing was asked for, and the store's precision was taken

    @property
    def nothing_usable(self) -> bool:
        """Every clip that was found failed: rather the machine or the folder than the clips."""
        return len(self.failed) == self.clips > 0


@dataclass(frozen=True)
class ExtractRequest:
    """What to extract, with what, into what."""

    bundle: Path
    videos: Path
    store: Path
    threads: int | None = None  # cores for one network; None: all
    retry: bool = False  # try clips again that failed before
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    trusted: TrustedKeys = ()  # one of them must have signed the bundle; none: anybody's will do
    wishes: Wishes = NO_WISHES  # where the networks run
    trained_on: str | None = None  # the precision that the settings name for training
