"""UCF101 and HMDB51 in their original layout, with empty files of the same kind of names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flamest.base.errors import DataError, UsageError
from flamest.experiments.datasets import (
    HMDB51,
    UCF101,
    find_split_folder,
    find_videos,
    leakage,
    official_split,
    paper_split,
)

ACTIONS = ("ApplyLipstick", "Archery")
TITLES = ("April_09", "The_Boss", "Trumanshow")


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    """Two classes, five groups of two clips; groups 1 and 2 are test."""
    videos, lists = tmp_path / "UCF-101", tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    names = [f"{a}/v_{a}_g{g:02d}_c{c:02d}.avi" for a in ACTIONS for g in range(1, 6) for c in (1, 2)]
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"")
    test = [name for name in names if "_g01_" in name or "_g02_" in name]
    train = [f"{name} {1 + ACTIONS.index(name.split('/')[0])}" for name in names if name not in test]
    (lists / "testlist01.txt").write_text("\r\n".join(test) + "\r\n")
    (lists / "trainlist01.txt").write_text("\n".join(train) + "\n")
    return videos


@pytest.fixture
def hmdb51(tmp_path: Path) -> Path:
    videos, splits = tmp_path / "hmdb51", tmp_path / "testTrainMulti_7030_splits"
    splits.mkdir()
    for label in ("catch", "cartwheel"):
        (videos / label).mkdir(parents=True)
        lines = []
        for mark, title in enumerate(TITLES):
            for cut in (0, 1):
                name = f"{title}_{label}_f_cm_np1_fr_med_{cut}.avi"
                (videos / label / name).write_bytes(b"")
                lines.append(f"{name} {mark} ")
        (splits / f"{label}_test_split1.txt").write_text("\n".join(lines))
    return videos


def rows_of(known, videos: Path, number: int = 1):
    clips = find_videos(known, videos).clips
    names, labels = [clip.name for clip in clips], [clip.label for clip in clips]
    return clips, official_split(known, find_split_folder(known, videos), number, names, labels)


def test_the_official_split_of_ucf101_leaks_no_group(ucf101: Path) -> None:
    clips, (train, test) = rows_of(UCF101, ucf101)
    assert (len(train), len(test)) == (12, 8)
    assert {clips[row].group for row in test} == {f"{a}_g{g:02d}" for a in ACTIONS for g in (1, 2)}
    found = leakage([clip.group for clip in clips], train, test)
    assert (found.groups, found.test_clips) == (0, 0)
    assert "no group" in str(found)


def test_the_official_split_of_hmdb51_reads_the_three_marks(hmdb51: Path) -> None:
    clips, (train, test) = rows_of(HMDB51, hmdb51)
    assert {clips[row].name.rsplit("/")[-1].split("_c")[0] for row in train} == {"The_Boss"}
    assert {clips[row].group for row in test} == {"Trumanshow"}
    assert len(train) + len(test) == 8  # the four with mark 0 are in neither


def test_groups_on_both_sides_are_counted() -> None:
    groups = ["a", "a", "b", "b", "c"]
    found = leakage(groups, np.array([0, 2, 3]), np.array([1, 4]))
    assert (found.groups, found.test_groups, found.test_clips, found.test_total) == (1, 2, 1, 2)
    assert "1 of 2 test clips have a sibling in train" in str(found)


def test_the_paper_split_leaks_groups(ucf101: Path) -> None:
    clips = find_videos(UCF101, ucf101).clips
    train, test = paper_split([clip.label for clip in clips], seed=0)
    assert (len(train), len(test)) == (16, 4)
    assert leakage([clip.group for clip in clips], train, test).test_clips > 0


def test_the_paper_split_has_the_papers_sizes() -> None:
    # 100 clips or more of each class, as in the data sets; the sums are theirs.
    for known in (UCF101, HMDB51):
        labels = np.resize([f"class-{number:03d}" for number in range(known.classes)], known.clips)
        train, test = paper_split(list(labels), seed=1)
        assert (len(train), len(test)) == (known.clips - known.test, known.test)
        counts = np.unique(labels[test], return_counts=True)[1]
        assert counts.max() - counts.min() <= 1
        assert not set(train) & set(test)
    assert (UCF101.clips - UCF101.test, HMDB51.clips - HMDB51.test) == (10_619, 5_413)


def test_the_paper_split_depends_on_the_seed_only() -> None:
    labels = ["a"] * 50 + ["b"] * 31
    first, again, other = (paper_split(labels, seed=seed)[1] for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(first) == 16


def test_a_part_of_a_data_set_is_used_with_warnings(ucf101: Path) -> None:
    found = find_videos(UCF101, ucf101)
    assert len(found.clips) == 20
    assert found.warnings == ("2 classes, UCF101 has 101", "20 clips, UCF101 has 13,320")


def test_missing_split_files_are_named_with_a_fix(ucf101: Path, hmdb51: Path) -> None:
    with pytest.raises(DataError, match=r"testlist02\.txt is missing|trainlist02\.txt is missing") as caught:
        rows_of(UCF101, ucf101, 2)
    assert "UCF101TrainTestSplits" in caught.value.fix
    (hmdb51.parent / "testTrainMulti_7030_splits" / "catch_test_split1.txt").unlink()
    with pytest.raises(DataError, match=r"catch_test_split1\.txt is missing"):
        rows_of(HMDB51, hmdb51)


def test_a_missing_split_folder_is_an_error_with_the_places_searched(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError, match="ucfTrainTestlist") as caught:
        find_split_folder(UCF101, tmp_path / "videos")
    assert caught.value.code == "no_split_files"


def test_an_unreadable_line_is_named(hmdb51: Path) -> None:
    path = hmdb51.parent / "testTrainMulti_7030_splits" / "catch_test_split1.txt"
    path.write_text("a.avi 1\nb.avi 3\n")
    with pytest.raises(DataError, match=r"line 2: 'b\.avi 3', expected"):
        rows_of(HMDB51, hmdb51)


def test_renamed_files_are_refused(ucf101: Path) -> None:
    with pytest.raises(DataError, match="names are not those of UCF101"):
        official_split(UCF101, find_split_folder(UCF101, ucf101), 1, ["x/1.avi"], ["x"])


def test_empty_folder_and_a_fourth_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no clips of HMDB51"):
        find_videos(HMDB51, tmp_path)
    with pytest.raises(UsageError, match="1, 2 and 3"):
        official_split(UCF101, tmp_path, 4, [], [])
