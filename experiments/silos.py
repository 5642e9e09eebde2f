"""Labelled videos split over silos and test, and laid out in one folder each."""

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
from ..base.errors import DataError
from .partition import dirichlet, eighth_of_even_share


@dataclass(frozen=True)
class LabelledVideo:
    """A video file with its label and its group (scene or person)."""

    path: Path
    label: str
    group: str


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
        LabelledVideo(clip.path, clip.label, clip.group or clip.path.stem) for clip in found if clip.label is not None
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


def split_videos(videos: Sequence[LabelledVideo], *, silos: int, beta: float, test_share: float, seed: int) -> Split:
    """Hold out whole groups for the test and split the rest over ``silos`` by Dir(beta) per class."""
    labels = [video.label for video in videos]
    rest, test = hold_out_groups([video.group for video in videos], test_share, seed, labels=labels)
    smallest = eighth_of_even_share(len(rest), silos)
    partition = dirichlet(np.array(labels)[rest], silos=silos, beta=beta, seed=seed, smallest=smallest)
    shares = {
        f"silo-{number}": tuple(videos[rest[row]] for row in rows)
        for number, rows in enumerate(partition.silos, start=1)
    }
    return Split(tuple(sorted(set(labels))), tuple(videos[row] for row in test), shares)


def lay_out_videos(videos: Sequence[LabelledVideo], folder: Path) -> None:
    """Put ``videos`` into ``folder`` (hard links where the disk allows) with a labels.csv."""
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "group"])
        for number, video in enumerate(videos):
            name = f"{number:05d}{video.path.suffix}"
            _place(video.path, folder / name)
            rows.writerow([name, video.label, video.group])


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
