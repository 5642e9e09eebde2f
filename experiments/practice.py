"""Files for the quick starts: a bundle, labelled clips of two silos, new clips (docs/quickstart/silo.md).

``practice/bundle`` is the mini-world's bundle, ``practice/labels.txt`` names the classes; ``practice/ward-7/videos``
and ``practice/ward-8/videos`` are the silos' clips as ``LABEL/clip.mp4`` with a labels.csv, of scenes of their own;
``practice/new`` has clips of scenes that neither has seen. ``practice/recording/corridor.mp4`` is a long recording
without labels, to label with ``flamest-agent label``; ``practice/corridor.csv`` says what it shows.
"""

from __future__ import annotations

import csv
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.files import new_directory
from ..base.progress import progress_bar
from ..runtime.bundle.packaged import miniworld_bundle
from ..runtime.clip_records import seconds_text
from .miniworld.specs import MOTIONS, OBJECTS
from .miniworld.videos import ClipKey, clip_keys, render_clips, render_recording

SEED = 500  # of the clips; not those of the demo and the experiments
SCENES = {"ward-7": range(0, 9), "ward-8": range(9, 18), "new": range(18, 20)}
RECORDED_SCENE, RECORDED = 20, 4  # of the recording: a scene of its own, clips of each class
SILOS = ("ward-7", "ward-8")
KEYS = tuple(clip_keys(groups=20, seed=SEED, objects=OBJECTS[:3], motions=MOTIONS[:2]))  # 6 classes, 120 clips
LABELS = tuple(dict.fromkeys(key.label for key in KEYS))
RECORDING = "corridor.mp4"


@dataclass(frozen=True)
class Practice:
    """The files of a practice folder."""

    folder: Path
    clips: dict[str, int]  # by silo, and of `new`; empty without PyAV, which writes the clips
    written: bool  # False: they were there already


def make_practice(folder: Path) -> Practice:
    """Write the files into ``folder``, which is new or empty or has them already; about ten seconds.

    Without PyAV, as on a coordinator's machine, the bundle and the class names are written and no clips. Raises
    StorageError when the folder has other files or cannot be written.
    """
    renders = importlib.util.find_spec("av") is not None
    parts = {part: _of(part) for part in SCENES} if renders else {}
    clips = {part: len(keys) for part, keys in parts.items()}
    if _is_there(folder, parts):
        return Practice(folder, clips, written=False)
    with new_directory(folder) as building:
        miniworld_bundle(building / "bundle")
        (building / "labels.txt").write_text("\n".join(LABELS) + "\n")
        if renders:
            _write_clips(parts, building)
            _write_recording(building)
    return Practice(folder, clips, written=True)


def clip_path(part: str, key: ClipKey) -> Path:
    """Path of a clip below the practice folder; the name of a new clip starts with its true class."""
    return Path(part, "videos", key.path) if part in SILOS else Path(part, key.path.replace("/", "-"))


def _of(part: str) -> list[ClipKey]:
    return [key for key in KEYS if key.group in SCENES[part]]


def _is_there(folder: Path, parts: dict[str, list[ClipKey]]) -> bool:
    clips = (folder / clip_path(part, key) for part, keys in parts.items() for key in keys)
    return all(path.is_file() for path in (folder / "bundle" / "bundle.json", folder / "labels.txt", *clips))


def _write_clips(parts: dict[str, list[ClipKey]], folder: Path) -> None:
    rendered = folder / "rendered"
    for label in LABELS:
        (rendered / label).mkdir(parents=True)
    with progress_bar("rendering", len(KEYS), unit="clips") as progress:
        for _ in render_clips(KEYS, rendered, processes=2):
            progress.advance()
    for part, keys in parts.items():
        for key in keys:
            target = folder / clip_path(part, key)
            target.parent.mkdir(parents=True, exist_ok=True)
            (rendered / key.path).rename(target)
    for label in LABELS:
        (rendered / label).rmdir()
    rendered.rmdir()
    for silo in SILOS:
        _write_labels(folder / silo / "videos" / "labels.csv", parts[silo])


def _write_recording(folder: Path) -> None:
    """Write a recording of all classes in changing order, and the table of its segments (video,label,start,end)."""
    shown = [(kind, motion, number) for kind in OBJECTS[:3] for motion in MOTIONS[:2] for number in range(RECORDED)]
    random.Random(SEED).shuffle(shown)
    (folder / "recording").mkdir()
    keys = [ClipKey(SEED, RECORDED_SCENE, *what) for what in shown]
    parts = render_recording(folder / "recording" / RECORDING, keys)
    with (folder / "corridor.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("video", "label", "start", "end"))
        for label, part in parts:
            rows.writerow((RECORDING, label, seconds_text(part.start_us), seconds_text(part.end_us)))


def _write_labels(path: Path, keys: Sequence[ClipKey]) -> None:
    """Write a silo's labels.csv. The group is the scene: its clips are held out together."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "group"))
        rows.writerows((key.path, key.label, key.group_name) for key in keys)
