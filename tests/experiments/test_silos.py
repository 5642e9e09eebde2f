"""Videos split over silos and laid out in folders, segments of recordings among them."""

from __future__ import annotations

from pathlib import Path

from flamest.agent.extraction.clips import scan_clips
from flamest.experiments.silos import LabelledVideo, laid_out_names, lay_out_videos, split_videos
from flamest.runtime.clip_records import Segment

WHOLE = {  # by the split of a folder without segments, version 0.2.0
    "test": [12, 13, 14, 15, 16, 17, 48, 49, 50, 51, 52, 53],
    "silo-1": [2, 5, 8, 11, 20, 23, 33, 38, 42, 47, 57, 59],
    "silo-2": [0, 1, 4, 7, 19, 21, 22, 24, 25, 26, 28, 29, 31, 34, 35, 36, 37, 43, 45, 46, 55, 56, 58],
    "silo-3": [3, 6, 9, 10, 18, 27, 30, 32, 39, 40, 41, 44, 54],
}


def ward(folder: Path, recordings: int = 12, each: int = 6) -> list[LabelledVideo]:
    """Segments of two classes, in recordings that are empty files; neighbours overlap by a second."""
    videos = []
    for number in range(recordings):
        path = folder / f"night-{number}.avi"
        path.touch()
        videos += [
            LabelledVideo(path, ("fall", "rest")[part % 2], path.stem, Segment.of_seconds(4 * part, 4 * part + 5))
            for part in range(each)
        ]
    return videos


def test_a_recording_is_in_one_silo_or_in_the_test(tmp_path):
    videos = ward(tmp_path)
    split = split_videos(videos, silos=3, beta=0.6, test_share=0.25, seed=0)
    sides = [split.test, *split.silos.values()]
    assert sum(map(len, sides)) == len(videos)
    recordings = [{video.path for video in side} for side in sides]
    assert all(found for found in recordings)
    assert sum(map(len, recordings)) == 12


def test_groups_divide_a_recording_but_not_its_frames(tmp_path):
    """Two groups in each recording; the third segment, of the second group, shares frames with the second."""
    videos = [
        LabelledVideo(tmp_path / f"{number}.avi", "ab"[part // 2], f"{number}-{part // 2}", Segment(start, end))
        for number in range(12)
        for part, (start, end) in enumerate([(0, 5), (5, 10), (9 if number < 6 else 10, 15), (15, 20)])
    ]
    split = split_videos(videos, silos=2, beta=5.0, test_share=0.25, seed=1)
    side_of = {video: side for side in split.silos for video in split.silos[side]} | dict.fromkeys(split.test, "test")
    assert len(side_of) == len(videos)
    sides = [{side_of[video] for video in videos if video.path.stem == str(number)} for number in range(12)]
    assert all(len(found) == 1 for found in sides[:6])
    assert any(len(found) == 2 for found in sides[6:])


def test_whole_files_are_split_as_before_segments(tmp_path):
    videos = [LabelledVideo(tmp_path / f"{n}.avi", "abc"[n % 3], f"scene-{n // 6}") for n in range(60)]
    split = split_videos(videos, silos=3, beta=0.6, test_share=0.2, seed=4)
    names = {side: [int(video.path.stem) for video in found] for side, found in split.silos.items()}
    assert [int(video.path.stem) for video in split.test] == WHOLE["test"]
    assert names == {side: rows for side, rows in WHOLE.items() if side != "test"}


def test_a_file_is_placed_once_and_its_rows_keep_everything(tmp_path):
    (tmp_path / "in").mkdir()
    videos = ward(tmp_path / "in", recordings=2, each=3)
    whole = tmp_path / "in" / "whole.mp4"
    whole.touch()
    videos.append(LabelledVideo(whole, "rest", "g", person="patient-1", camera="door"))
    lay_out_videos(videos, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("00000.avi", "00003.avi", "00006.mp4", "labels.csv"),
    ]
    assert (tmp_path / "out" / "00003.avi").samefile(videos[3].path)
    found = {clip.name: clip for clip in scan_clips(tmp_path / "out").clips}
    assert sorted(found) == sorted(laid_out_names(videos))
    for name, video in zip(laid_out_names(videos), videos, strict=True):
        clip = found[name]
        assert (clip.label, clip.group, clip.segment) == (video.label, video.group, video.segment)
        assert (clip.person, clip.camera) == (video.person, video.camera)
        assert clip.path.samefile(video.path)


def test_folders_of_whole_files_have_the_three_columns(tmp_path):
    (tmp_path / "a.avi").touch()
    lay_out_videos([LabelledVideo(tmp_path / "a.avi", "rest", "g")], tmp_path / "out")
    assert (tmp_path / "out" / "labels.csv").read_text().splitlines() == ["path,label,group", "00000.avi,rest,g"]


def test_segments_of_a_file_have_one_group_whatever_their_class(tmp_path):
    """HMDB51's names hold the class, which is no part of the group; a folder may be a class too."""
    files = ("April_09_walk_f_cm_np1_fr_med_0.avi", "fall/kitchen_fall_02.mp4", "walk/01.mp4", "kitchen_walk_02.mp4")
    lines = ["path,label,start_s,end_s"]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
        lines += [f"{file},{label},{number},{number + 1}" for number, label in enumerate(("walk", "fall", ""))]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    groups: dict[Path, set[str]] = {}
    for clip in scan_clips(tmp_path).clips:
        groups.setdefault(clip.path, set()).add(clip.group)
    assert len(groups) == len(files)
    assert all(len(found) == 1 for found in groups.values()), groups
