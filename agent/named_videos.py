"""Videos and segments of them as a person names them: ``ward/long.mp4``, ``ward/long.mp4#t=12.5,17``, folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import DataError, StorageError
from ..runtime.clip_records import Segment
from .extraction.clips import scan_clips
from .extraction.labels_table import LABELS_FILE, seconds_us

MARK = "#t="


@dataclass(frozen=True)
class NamedVideo:
    """A video file, or a segment of one."""

    path: Path
    segment: Segment | None = None  # None: the whole file


@dataclass(frozen=True)
class UnusableVideo:
    """A path that was given, or found in a folder, and is no video; ``reason`` is "code: sentence"."""

    path: Path
    reason: str


def find_videos(paths: Sequence[Path], *, segments: bool = False) -> tuple[list[NamedVideo], list[UnusableVideo]]:
    """Return the videos of ``paths``, folders searched as by ``extract``, and what of them cannot be a video.

    A path that is no folder is taken as a video file, whatever it is; one that does not exist and ends in
    ``#t=START,END``, seconds from the video's first frame, as a segment. ``segments``: of a folder the clips that its
    labels.csv lists, instead of all its files.
    """
    videos: list[NamedVideo] = []
    problems: list[UnusableVideo] = []
    for path in paths:
        if path.is_dir():
            found, unusable = _of_folder(path, listed=segments)
            videos += found
            problems += unusable
            continue
        try:
            videos.append(_parse(path))
        except ValueError as error:
            expected = "expected VIDEO#t=START,END in seconds, as clip.mp4#t=12.5,17"
            problems.append(UnusableVideo(path, f"bad_segment: there is no file of this name, and {error}; {expected}"))
    return videos, problems


def _parse(path: Path) -> NamedVideo:
    """Read a video's name. Raises ValueError with a sentence for times that no segment has."""
    file, mark, times = str(path).rpartition(MARK)
    if not mark or os.path.lexists(path):
        return NamedVideo(path)
    start, comma, end = times.partition(",")
    if not comma or not os.path.basename(file):
        raise ValueError(f"{times!r} is not two times")
    segment = Segment(seconds_us(start), seconds_us(end))
    if segment.start_us >= segment.end_us:
        raise ValueError(f"it ends at {end} s, and starts at {start} s")
    return NamedVideo(Path(file), segment)


def _of_folder(path: Path, *, listed: bool) -> tuple[list[NamedVideo], list[UnusableVideo]]:
    if listed and not os.path.lexists(path / LABELS_FILE):
        return [], [UnusableVideo(path, f"no_clips: there is no {LABELS_FILE} in this folder that lists segments")]
    try:
        folder = scan_clips(path, labelled=listed)
    except (DataError, StorageError) as error:
        return [], [UnusableVideo(path, f"{error.code}: {error.message}")]
    problems = [UnusableVideo(path / found.name, f"{found.code}: {found.reason}") for found in folder.problems]
    if not folder.clips and not problems:
        nothing = f"{LABELS_FILE} lists no clips" if listed else "there are no video files in this folder"
        problems.append(UnusableVideo(path, f"no_clips: {nothing}"))
    return [NamedVideo(clip.path, clip.segment) for clip in folder.clips], problems
