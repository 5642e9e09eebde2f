"""``predict --timeline``: the actions of long videos, with start and end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.console import say
from ...base.progress import BarPerPart
from .timeline_output import csv_header, csv_lines, timeline_entry, timeline_lines

if TYPE_CHECKING:
    from ...runtime.backends.opening import OpeningOptions
    from ...runtime.bundle.signature import TrustedKeys
    from ..timeline.events import Timeline
    from ..timeline.windows import WindowPlan


@dataclass(frozen=True)
class PredictWith:
    """Bundle, model and settings of predictions."""

    bundle: Path
    model: Path
    top: int
    threshold: float | None
    opening: OpeningOptions
    trusted: TrustedKeys


@dataclass(frozen=True)
class Shown:
    """Form of a command's output."""

    as_csv: bool
    as_json: bool

    @property
    def as_text(self) -> bool:
        return not (self.as_csv or self.as_json)


def show_timelines(
    given: PredictWith, paths: list[Path], plan: WindowPlan, shown: Shown, on_open: Callable[[Any], None]
) -> tuple[list[dict[str, Any]], int]:
    """Read and show the timelines of the videos at ``paths``; return their entries, and how many are videos' paths."""
    from ..named_videos import find_videos
    from ..timeline.events import Timeline
    from ..timeline.reading import TimelineProgress, read_timelines

    videos, unusable = find_videos(paths)
    whole = [video.path for video in videos if video.segment is None]
    problems = [Timeline(each.path, reason=each.reason) for each in unusable]
    problems += [
        Timeline(Path(f"{video.path}#{video.segment}"), reason="bad_segment: a timeline is of a whole video")
        for video in videos
        if video.segment is not None
    ]
    entries: list[dict[str, Any]] = []
    if shown.as_csv:
        print(csv_header(given.top))

    def show(timeline: Timeline) -> None:
        entries.append(timeline_entry(timeline))
        for line in (
            csv_lines(timeline, given.top) if shown.as_csv else () if shown.as_json else timeline_lines(timeline)
        ):
            say(line)

    if whole:
        with BarPerPart(unit="windows") as bars:
            for timeline in read_timelines(
                given.bundle,
                given.model,
                whole,
                plan=plan,
                top=given.top,
                threshold=given.threshold,
                opening=given.opening,
                trusted=given.trusted,
                on_open=on_open,
                progress=TimelineProgress(lambda path, count: bars.begin(path.name, count), bars.advance),
            ):
                bars.close()
                show(timeline)
    for problem in problems:
        show(problem)
    return entries, len(whole)
