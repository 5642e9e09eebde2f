"""UCF101 and HMDB51 as they unpack: folders, official split files, the paper's 80:20 split.

    UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi        UCF101.rar
    ucfTrainTestlist/trainlist01.txt, testlist01.txt           UCF101TrainTestSplits-RecognitionTask.zip
    hmdb51/brush_hair/TITLE_brush_hair_h_nm_np1_ba_goo_0.avi   hmdb51_org.rar, and a .rar per class in it
    testTrainMulti_7030_splits/brush_hair_test_split1.txt      test_train_splits.rar

The split files may be in the video folder or next to it. The paper's own split (10,619/2,701 and
5,413/1,353 clips) is 80:20 over clips: clips of one scene are on both sides, which ``leakage``
counts. https://www.crcv.ucf.edu/data/UCF101.php,
https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..agent.extraction.clips import FoundClip, check_videos_folder, find_clips
from ..agent.training.shared_frames import Extent
from ..base.errors import DataError, UsageError
from ..base.files import printable_path
from .recordings import shared_recordings

Rows = npt.NDArray[np.int64]
OFFICIAL_SPLITS = (1, 2, 3)


@dataclass(frozen=True)
class KnownDataset:
    """Size and split files of a complete data set."""

    name: str
    title: str
    clips: int
    classes: int
    test: int  # clips of the paper's split
    split_folder: str
    source: str  # archive of the split files


UCF101 = KnownDataset(
    "ucf101", "UCF101", 13_320, 101, 2_701, "ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask.zip"
)
HMDB51 = KnownDataset("hmdb51", "HMDB51", 6_766, 51, 1_353, "testTrainMulti_7030_splits", "test_train_splits.rar")
KNOWN = {known.name: known for known in (UCF101, HMDB51)}


@dataclass(frozen=True)
class VideoSet:
    """The clips of a data set's folder."""

    clips: tuple[FoundClip, ...]
    warnings: tuple[str, ...]  # differences from the complete data set


def find_videos(known: KnownDataset, folder: Path) -> VideoSet:
    """The labelled clips under ``folder``, and their differences from the complete data set.

    Raises DataError when it is no folder or holds no clip.
    """
    check_videos_folder(folder)
    clips = tuple(clip for clip in find_clips(folder) if clip.label is not None)
    if not clips:
        layout = "CLASS/NAME.avi" if known is HMDB51 else "CLASS/v_CLASS_g01_c01.avi"
        raise DataError(
            f"{printable_path(folder)} holds no clips of {known.title}, expected {layout}",
            fix=f"unpack {known.title} there (HMDB51 has one archive per class inside) and give the folder as --videos",
        )
    classes = len({clip.label for clip in clips})
    warnings = []
    if classes != known.classes:
        warnings.append(f"{classes} classes, {known.title} has {known.classes}")
    if len(clips) != known.clips:
        warnings.append(f"{len(clips):,} clips, {known.title} has {known.clips:,}")
    return VideoSet(clips, tuple(warnings))


def find_split_folder(known: KnownDataset, videos: Path) -> Path:
    """The folder of the official split files, in the video folder or next to it. Raises DataError."""
    videos = Path(videos)
    places = [videos / known.split_folder, videos.parent / known.split_folder, videos]
    for place in places:
        if any(_split_file(known, place, "", 1).parent.glob("*list01.txt" if known is UCF101 else "*_test_split1.txt")):
            return place
    raise DataError(
        f"the official split files of {known.title} are missing; looked for "
        + " and ".join(printable_path(place) for place in places[:2]),
        fix=f"unpack {known.source} next to the video folder, or choose --split paper or --split groups",
        code="no_split_files",
    )


def official_split(
    known: KnownDataset, folder: Path, number: int, names: Sequence[str], labels: Sequence[str]
) -> tuple[Rows, Rows]:
    """Rows (train, test) of clips by the official split ``number`` (1 to 3).

    ``names``: each clip's file name or path; ``labels``: its class. A clip that the split leaves
    out (HMDB51's mark 0) is in neither. Raises UsageError on another number, DataError with the missing file
    or the unreadable line, and when a side of the split contains none of the clips.
    """
    if number not in OFFICIAL_SPLITS:
        raise UsageError(f"{known.title} has the official splits 1, 2 and 3, not {number}", fix="--split official-1")
    read = _read_ucf101 if known is UCF101 else _read_hmdb51
    train_names, test_names = read(Path(folder), number, sorted(set(labels)))
    bare = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in names]
    train = np.array([row for row, name in enumerate(bare) if name in train_names], dtype=np.int64)
    test = np.array([row for row, name in enumerate(bare) if name in test_names], dtype=np.int64)
    if not len(train) or not len(test):
        raise DataError(
            f"the official split {number} of {known.title} puts {len(train)} of {len(names)} clips into train and "
            f"{len(test)} into test: the file names are not those of {known.title}, for example {bare[:1]}",
            fix="keep the original file names, or choose --split groups",
        )
    return train, test


def paper_split(labels: Sequence[str], *, seed: int, test: int | None = None) -> tuple[Rows, Rows]:
    """Rows (train, test), stratified by class, without regard to groups (paper section 4: 80:20).

    ``test``: clips in the test split; by default the paper's number for the complete UCF101 (2,701) and HMDB51
    (1,353), else 20 %. Every class gives its share, by largest remainder.
    """
    names, classes = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
    if test is None:
        whole = {(known.clips, known.classes): known.test for known in KNOWN.values()}
        test = whole.get((len(classes), len(names)), round(0.2 * len(classes)))
    counts = np.bincount(classes, minlength=len(names))
    wanted = counts * (test / max(len(classes), 1))
    quota = np.floor(wanted).astype(np.int64)
    by_remainder = np.argsort(quota - wanted, kind="stable")
    quota[by_remainder[: test - int(quota.sum())]] += 1
    random = np.random.Generator(np.random.PCG64(seed))
    chosen = [random.permutation(np.flatnonzero(classes == number))[:take] for number, take in enumerate(quota)]
    held = np.sort(np.concatenate([*chosen, np.empty(0, np.int64)])).astype(np.int64)
    return np.setdiff1d(np.arange(len(classes), dtype=np.int64), held), held


@dataclass(frozen=True)
class Leakage:
    """Overlap of scenes and recordings between test and training split."""

    groups: int  # on both sides
    test_groups: int
    test_clips: int  # whose group is also in train
    test_total: int
    recordings: int = 0  # with segments on both sides

    def __str__(self) -> str:
        cut = f"; {self.recordings:,} recordings have segments in both" if self.recordings else ""
        if not self.groups:
            return f"no group of the {self.test_groups:,} in test is in train{cut}"
        return (
            f"{self.groups:,} of the {self.test_groups:,} groups in test are in train too: {self.test_clips:,} of "
            f"{self.test_total:,} test clips have a sibling in train, which inflates accuracy{cut}"
        )


def leakage(groups: Sequence[str], train: Rows, test: Rows, extents: Sequence[Extent] = ()) -> Leakage:
    """Count the groups and clips of ``test`` whose scene is also in ``train``, and the recordings cut by the split.

    ``extents``: of each clip, as ``groups``; without it no recording is counted.
    """
    in_train = {groups[row] for row in train}
    in_test = {groups[row] for row in test}
    leaked = sum(1 for row in test if groups[row] in in_train)
    return Leakage(len(in_train & in_test), len(in_test), leaked, len(test), shared_recordings(extents, train, test))


def groups_digest(groups: Iterable[str]) -> str:
    """SHA-256 of the sorted, distinct names; equal for two splits that hold out the same scenes."""
    return hashlib.sha256("\0".join(sorted(set(groups))).encode(errors="surrogateescape")).hexdigest()


def _split_file(known: KnownDataset, folder: Path, label: str, number: int, side: str = "test") -> Path:
    if known is UCF101:
        return folder / f"{side}list{number:02d}.txt"
    return folder / f"{label}_test_split{number}.txt"


def _read_ucf101(folder: Path, number: int, labels: Sequence[str]) -> tuple[set[str], set[str]]:
    """``CLASS/NAME.avi 1`` in the train list, ``CLASS/NAME.avi`` in the test list."""
    sides = []
    for side in ("train", "test"):
        path = _split_file(UCF101, folder, "", number, side)
        names = set()
        for line, words in _lines(path, UCF101):
            if len(words) > (2 if side == "train" else 1) or "/" not in words[0]:
                raise DataError(
                    f"{printable_path(path)}, line {line}: {' '.join(words)!r}, expected CLASS/NAME.avi",
                    fix="download the official split files again",
                )
            names.add(words[0].rsplit("/", 1)[1])
        sides.append(names)
    return sides[0], sides[1]


def _read_hmdb51(folder: Path, number: int, labels: Sequence[str]) -> tuple[set[str], set[str]]:
    """``NAME.avi MARK``: 1 is train, 2 is test, 0 is neither; one file per class."""
    train: set[str] = set()
    test: set[str] = set()
    for label in labels:
        path = _split_file(HMDB51, folder, label, number)
        for line, words in _lines(path, HMDB51):
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise DataError(
                    f"{printable_path(path)}, line {line}: {' '.join(words)!r}, expected NAME.avi 0|1|2",
                    fix="download the official split files again",
                )
            if words[1] != "0":
                (train if words[1] == "1" else test).add(words[0])
    return train, test


def _lines(path: Path, known: KnownDataset) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(
            f"the split file {printable_path(path)} is missing",
            fix=f"unpack {known.source} again, or choose --split paper or --split groups",
            code="no_split_files",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {printable_path(path)}: {error}", fix="download the official split files again"
        ) from error
    return [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
