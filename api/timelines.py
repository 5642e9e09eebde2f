"""Timelines of long videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..agent.named_videos import find_videos
from ..agent.timeline.events import Timeline
from ..agent.timeline.reading import TimelineProgress, read_timelines
from ..agent.timeline.windows import window_plan
from ..base.errors import DataError
from ..base.progress import BarPerPart
from .bundles import Bundle, PathLike, model_of, open_bundle
from .checks import path_of, whole_number
from .models import Model
from .runs import Run

LIKE = "fl.timeline('long.mp4', …)"


def timeline(
    videos: PathLike | Sequence[PathLike],
    *,
    model: Model | Run | PathLike,
    bundle: Bundle | PathLike,
    window: float | None = None,
    stride: float | None = None,
    top: int = 5,
    threshold: float | None = None,
    progress: bool = True,
) -> list[Timeline]:
    """Find the actions in long videos, with start and end.

    Overlapping windows are answered and smoothed over time. Each frame is decoded once, and memory does not grow with
    the length of a video.

    Args:
        videos: A video file, a folder, or several of them.
        model: A model, the run that made it, or its file.
        bundle: The bundle whose embeddings it was trained on.
        window: Length in seconds of the parts that are answered, 2 unless given; at most that of the training clips.
        stride: Seconds from the start of one window to the next; half a window unless given.
        top: How many labels to give for each event.
        threshold: As for ``predict``, of each window.
        progress: Show a bar for each video on a terminal, and a line every ten seconds elsewhere.

    Returns:
        A ``Timeline`` for each video: ``video``, ``length_s``, and ``events``, in order and without gaps where the
        video has none. An event has ``start_s``, ``end_s``, ``label`` (``unknown`` where no label is likely enough,
        empty where the stretch could not be read), ``unknown``, ``probability``, ``labels``, ``warnings`` and
        ``reason``. A video that cannot be read has a ``reason`` and no events.

    Raises:
        UsageError: An argument is of another type or out of range.
        DataError: There is no such video; the model was trained on the embeddings of another bundle.
        MissingExtra: A package of the extra ``agent`` is not installed.
    """
    top, plan = whole_number("top", top, least=1, like=5), window_plan(window, stride)
    given = [videos] if isinstance(videos, str | Path) or not isinstance(videos, Sequence) else videos
    found, unusable = find_videos([path_of("a video", path, like=LIKE) for path in given])
    files = [video.path for video in found if video.segment is None]
    if not files:
        raise DataError("no video was given", fix=f"{LIKE}, or a folder of videos", code="no_clips")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(path_of("bundle", bundle, like="bundle='miniworld'"))
    with BarPerPart(unit="windows", shown=progress) as bars:
        read = read_timelines(
            opened.path,
            model_of(model).file(),
            files,
            plan=plan,
            top=top,
            threshold=threshold,
            progress=TimelineProgress(windows=lambda path, count: bars.begin(path.name, count), window=bars.advance),
        )
        timelines = list(read)
    return [*timelines, *(Timeline(each.path, reason=each.reason) for each in unusable)]
