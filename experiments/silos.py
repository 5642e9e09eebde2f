"""Labelled videos split over silos and test, and laid out in one folder each.

A clip may be a segment of a recording; recordings.py has the rules by which those are split.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..agent.extraction.clips import check_videos_folder, find_clips
from ..agent.training.holdout import hold_out_groups
from ..agent.training.shared_frames import Extent, joined_groups
from ..base.errors import DataError
from ..runtime.clip_records import Segment, seconds_text
from .partition import Rows, dirichlet
from .recordings import clip_name, silo_units, smallest_share, split_units


@dataclass(frozen=True)
class LabelledVideo:
    """A video file, or a segment of one, with its label and its group (scene or person)."""

    path: Path
    label: str
    group: str
    segment: Segment | None = None  # None: the whole file
    person: str = ""  # as labels.csv says
    camera: str = ""

    @property
    def extent(self) -> Extent:
        """Its frames, to compare with those of other clips."""
        return Extent(str(self.path), self.segment)

    def named(self, path: Path | str) -> str:
        """``path`` as the name of this clip: with its segment, as commands take it."""
        return clip_name(path, self.segment)


@dataclass(frozen=True)
class Split:
    """Clips of each silo and of the test, which holds out whole groups."""

    labels: tuple[str, ...]
    test: tuple[LabelledVideo, ...]
    silos: dict[str, tuple[LabelledVideo, ...]]


def labelled_videos(folder: Path) -> tuple[LabelledVideo, ...]:
    """The labelled clips under ``folder``. Raises DataError when they have fewer than two classes."""
    check_videos_folder(folder)
    found = find_clips(folder)
    videos = tuple(
        LabelledVideo(clip.path, clip.label, clip.group or clip.path.stem, clip.segment, clip.person, clip.camera)
        for clip in found
        if clip.label is not None
    )
    classes = {video.label for video in videos}
    if len(classes) < 2:
        raise DataError(
            f"{folder} holds labelled clips of {len(classes)} class(es), expected 2 or more",
            fix="arrange them as LABEL/clip.ext, or write a labels.csv with path,label,group",
        )
    return videos


def is_miniworld(folder: Path) -> bool:
    """True for a rendered mini-world: it holds captions.csv, labels.csv and only folders of its classes."""
    from .miniworld.specs import MOTIONS, OBJECTS

    if not (folder / "labels.csv").is_file() or not (folder / "captions.csv").is_file():
        return False
    classes = {f"{thing}_{motion}" for thing in OBJECTS for motion in MOTIONS}
    inside = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    return bool(inside) and inside <= classes


def held_out(videos: Sequence[LabelledVideo], share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows (train, test): about ``share`` of each class in whole groups, and no frame on both sides."""
    groups = joined_groups([video.group for video in videos], [video.extent for video in videos])
    return hold_out_groups(groups, share, seed, labels=[video.label for video in videos])


def split_videos(videos: Sequence[LabelledVideo], *, silos: int, beta: float, test_share: float, seed: int) -> Split:
    """Hold out whole groups for the test and split the rest over ``silos`` by Dir(beta) per class.

    The segments of a recording stay together (recordings.py).
    """
    rows, test = held_out(videos, test_share, seed)
    rest = [videos[row] for row in rows]
    labels = tuple(sorted({video.label for video in videos}))
    number = {label: place for place, label in enumerate(labels)}
    y = np.array([number[video.label] for video in rest], dtype=np.int64)
    units = silo_units([video.group for video in rest], [video.extent for video in rest])
    partition = split_units(
        units,
        y,
        lambda y: dirichlet(y, silos=silos, beta=beta, seed=seed, smallest=smallest_share(len(y), len(rest), silos)),
    )
    shares = {f"silo-{place}": tuple(rest[row] for row in rows) for place, rows in enumerate(partition.silos, start=1)}
    return Split(labels, tuple(videos[row] for row in test), shares)


def laid_out_names(videos: Sequence[LabelledVideo]) -> tuple[str, ...]:
    """The names of the clips in the folder that ``lay_out_videos`` makes of them, all different."""
    files: dict[Path, str] = {}
    for number, video in enumerate(videos):
        files.setdefault(video.path, f"{number:05d}{video.path.suffix}")
    return tuple(video.named(files[video.path]) for video in videos)


def lay_out_videos(videos: Sequence[LabelledVideo], folder: Path) -> None:
    """Put the files of ``videos`` into ``folder`` (hard links where the disk allows), each once, with a labels.csv."""
    folder.mkdir(parents=True)
    placed: dict[Path, str] = {}
    for video, name in zip(videos, laid_out_names(videos), strict=True):
        if video.path not in placed:
            placed[video.path] = name.removesuffix(f"#{video.segment}")
            _place(video.path, folder / placed[video.path])
    columns = ["path", "label", "group"]
    columns += ["start_s", "end_s"] if any(video.segment for video in videos) else []
    columns += [column for column in ("person", "camera") if any(getattr(video, column) for video in videos)]
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, columns, extrasaction="ignore")
        rows.writeheader()
        rows.writerows(_row(video, placed[video.path]) for video in videos)


def _row(video: LabelledVideo, path: str) -> dict[str, str]:
    row = {"path": path, "label": video.label, "group": video.group, "person": video.person, "camera": video.camera}
    if video.segment:
        row |= {"start_s": seconds_text(video.segment.start_us), "end_s": seconds_text(video.segment.end_us)}
    return row


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
