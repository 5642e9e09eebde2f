"""The timeline of a long video: windows through the networks and a trained head, smoothed over time.

The video is decoded window by window, in order, each frame once (runtime/video/overlap_frames.py). Kept of it are the
frames of a few windows, however long it is.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, StorageError
from ...base.files import FileStamp, printable_path
from ...fedproto.model_file import ModelFile, read_model
from ...runtime.backends.opening import GraphPlacement, OpeningOptions
from ...runtime.bundle.signature import TrustedKeys
from ...runtime.clip_records import Clip, ClipFeatures, clip_identity
from ...runtime.extractor import ExtractionResult, Extractor, open_extractor
from ...runtime.pipeline_options import PipelineOptions
from ...runtime.video.decoder import DecodeLimits, VideoDecoder
from ..answers import Answers
from ..extraction.contents import content_hash
from ..named_videos import NamedVideo
from ..predict import check_bundle, tuned_opening
from .events import EventBuilder, Timeline, TimelineEvent
from .smoothing import Smoothing
from .windows import Window, WindowPlan, count_windows, sliding_windows, window_plan

HELD_BYTES = 768 << 20  # decoded frames that the one decoder keeps: those of a window of 4K video
OUTSIDE = "segment_outside"  # the container promised more than there is


def never_stops() -> bool:
    return False


@dataclass(frozen=True)
class TimelineProgress:
    """Callbacks while a video is read: ``windows`` once, with their number, ``window`` after each, ``stop`` often."""

    windows: Callable[[Path, int], None] = lambda _, __: None
    window: Callable[[], None] = lambda: None
    stop: Callable[[], bool] = never_stops


class TimelineReader:
    """Opened networks that read one video after the other. Open with ``open_reader``."""

    def __init__(
        self, extractor: Extractor, plan: WindowPlan, smoothing: Smoothing | None, limits: DecodeLimits
    ) -> None:
        self.extractor, self.plan, self.smoothing, self.limits = extractor, plan, smoothing, limits

    def events(
        self, video: Path, answers: Answers, progress: TimelineProgress | None = None
    ) -> Iterator[TimelineEvent]:
        """Yield the events of a video in order, each as soon as no later window can change it.

        A stretch that cannot be read is an event with its reason. Raises DataError or StorageError when the video
        cannot be read at all; DataError ``video_changed`` when it was written to meanwhile; Stopped.
        """
        builder = EventBuilder(answers, self.smoothing, self.plan)
        first_error: DataError | None = None
        waiting: list[TimelineEvent] | None = []  # until a window could be read
        for window, result in self.windows(video, progress):
            if result.features is not None:
                [probability] = answers.probabilities(embedding(result.features))
                made = builder.add(window.stretch, probability, result.features.warnings)
                if waiting is not None:
                    yield from waiting
                    waiting = None
            else:
                error = result.error or DataError("was not read", fix="run the command again")
                first_error = first_error or error
                reason = f"{error.code}: {_without_name(error.message, video)}"
                made = iter(()) if error.code == OUTSIDE else builder.add_unread(window.stretch, reason)
            if waiting is None:
                yield from made
            else:
                waiting += made
        if waiting is not None:
            raise first_error or DataError(
                f"{printable_path(video)} shows no frame", fix="remove it, or convert it again", code="video_damaged"
            )
        yield from builder.end()

    def windows(
        self, video: Path, progress: TimelineProgress | None = None
    ) -> Iterator[tuple[Window, ExtractionResult]]:
        """Yield the windows of a video in order, each with its embedding or the error. Raises as ``events``."""
        progress = progress or TimelineProgress()
        before = _stamp(video)
        sha256 = content_hash(video, self.limits, progress.stop)
        with VideoDecoder(None, self.limits) as decoder:
            times = decoder.frame_times(video)
        count = count_windows(times.t_us, times.end_us, self.plan)
        progress.windows(video, count)
        asked: deque[Window] = deque()

        def clips() -> Iterator[Clip]:
            for window in sliding_windows(times.t_us, times.end_us, self.plan):
                asked.append(window)
                yield _clip(video, sha256, None if count == 1 else window)

        with closing(self.extractor.extract_all(clips(), stop=progress.stop)) as results:
            for result in results:
                progress.window()
                yield asked.popleft(), result
        if _stamp(video) != before:
            raise DataError(
                f"{printable_path(video)} was written to while it was read",
                fix="run the command again when nothing writes to the file",
                code="video_changed",
            )

    def timeline(self, video: Path, answers: Answers, progress: TimelineProgress | None = None) -> Timeline:
        """Return a video's timeline, or the reason why it cannot be read. Raises Stopped."""
        try:
            events = tuple(self.events(video, answers, progress))
        except (DataError, StorageError) as error:
            return Timeline(video, reason=f"{error.code}: {error.message}")
        length_s = events[-1].end_s if events else 0.0
        return Timeline(video, events, length_s, sum(event.windows for event in events))


def embedding(features: ClipFeatures) -> npt.NDArray[np.float32]:
    """Return the embedding as a head takes it, float32 [1, D]."""
    return np.concatenate([features.vlm, features.cnn])[None]


def _without_name(message: str, video: Path) -> str:
    """Return a window's error without the window's name at its start."""
    return re.sub(r"^#t=[0-9.,]+", "", message.removeprefix(printable_path(video))).strip(": ")


def _clip(video: Path, sha256: str, window: Window | None) -> Clip:
    """Return the clip that a window shows. None: the video is one window, and is read as the clip that it is."""
    if window is None:
        return Clip(video, sha256)
    shown = window.shown
    return Clip(video, clip_identity(sha256, shown), segment=shown, file_sha256=sha256, next_us=window.next_us)


@contextmanager
def open_reader(
    bundle: Path,
    *,
    plan: WindowPlan | None = None,
    smoothing: Smoothing | None = Smoothing(),  # noqa: B008  # frozen
    opening: OpeningOptions | None = None,
    trusted: TrustedKeys = (),
    limits: DecodeLimits | None = None,
) -> Iterator[TimelineReader]:
    """Open the bundle's networks for timelines. ``smoothing``: None keeps each window's own answer.

    Raises as ``open_extractor``.
    """
    limits = replace(limits or DecodeLimits(), held_bytes=HELD_BYTES)
    one = PipelineOptions(readers=1)  # several would decode what their windows share several times
    with open_extractor(bundle, opening=opening, trusted=trusted, limits=limits, pipeline=one) as extractor:
        yield TimelineReader(extractor, plan or window_plan(), smoothing, limits)


def read_timelines(
    bundle: Path,
    model: Path | ModelFile,
    videos: Sequence[Path],
    *,
    plan: WindowPlan | None = None,
    top: int = 5,
    threshold: float | None = None,
    opening: OpeningOptions | None = None,
    trusted: TrustedKeys = (),
    on_open: Callable[[Sequence[GraphPlacement]], None] = lambda _: None,
    progress: TimelineProgress | None = None,
) -> Iterator[Timeline]:
    """Yield one Timeline per video, in order; a broken one yields its reason, and the others are not affected.

    Arguments and errors as ``predict_videos``.
    """
    opening = tuned_opening(opening or OpeningOptions(), bundle, [NamedVideo(video) for video in videos], trusted)
    read = model if isinstance(model, ModelFile) else read_model(model)
    answers = Answers(read, top=top, threshold=threshold, threads=opening.threads)
    with open_reader(bundle, plan=plan, opening=opening, trusted=trusted) as reader:
        on_open(tuple(reader.extractor.placements.values()))
        check_bundle(read, None if read is model else model, reader.extractor.manifest, bundle)
        for video in videos:
            yield reader.timeline(video, answers, progress)


def _stamp(video: Path) -> tuple[int, int, int] | None:
    try:
        return FileStamp.of(video).content
    except OSError:  # ``content_hash`` says what is wrong
        return None
