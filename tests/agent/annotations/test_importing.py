"""The merge into labels.csv: nothing removed, nothing changed silently, every difference a line."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.annotations.annotation import Annotation, AnnotationFile, FrameRange
from flamest.agent.annotations.frame_spans import SpanReader
from flamest.agent.annotations.importing import Importer
from flamest.agent.annotations.labels_file import LabelsFile
from flamest.agent.extraction.clips import scan_clips
from flamest.agent.extraction.groups import DEFAULT_RULES
from flamest.runtime.clip_records import FrameTimes, Segment


class Timer:
    """Every video has 1,000 frames, 40 ms each."""

    def frame_times(self, path):
        return FrameTimes(np.arange(1000, dtype=np.int64) * 40_000, np.zeros(1, np.int64), 40_000_000)


@pytest.fixture
def folder(tmp_path):
    for name in ("walk/a.mp4", "long.mp4", "person1_day_01.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    return tmp_path


def seconds(start, end):
    return Segment.of_seconds(start, end)


def said(video, label, span=None, **more):
    return Annotation(more.pop("where", "line 2"), video, label, span, **more)


def plan(folder, *annotations, name="x.csv"):
    source = AnnotationFile("segments", list(annotations))
    return Importer(LabelsFile.open(folder), SpanReader(Timer()), DEFAULT_RULES).plan([(name, source)])


def merge(folder, *annotations):
    made = plan(folder, *annotations)
    made.settle(LabelsFile.open(folder).apply(made.changes))
    return made


def states(made):
    return [merged.state for merged in made.merged]


def codes(made):
    return [problem.code for problem in made.problems]


def test_a_second_import_finds_everything_equal(folder):
    annotations = (said("long.mp4", "fall", seconds(1, 2)), said("long.mp4", "walk", FrameRange(50, 75)))
    assert states(merge(folder, *annotations)) == ["new", "new"]
    before = (folder / "labels.csv").read_bytes()
    again = merge(folder, *annotations)
    assert states(again) == ["equal", "equal"]
    assert not again.changes
    assert (folder / "labels.csv").read_bytes() == before
    assert b"long.mp4,walk,2,3," in before


def test_an_import_keeps_every_row_and_byte_that_was_there(folder):
    table = "path,label,start_s,end_s\r\nlong.mp4,sit,0,1\r\nbroken row\r\nwalk/a.mp4,walk,,\r\n"
    (folder / "labels.csv").write_bytes(table.encode())
    merge(folder, said("long.mp4", "fall", seconds(1, 2)))
    assert (folder / "labels.csv").read_bytes().decode() == table.replace(
        "sit,0,1\r\n", "sit,0,1\r\nlong.mp4,fall,1,2\r\n"
    )


def test_another_label_for_a_clip_is_a_conflict_and_the_row_stays(folder):
    (folder / "labels.csv").write_text("path,label,start_s,end_s\nlong.mp4,sit,1,2\nlong.mp4,,3,4\n")
    made = merge(folder, said("long.mp4", "fall", seconds(1, 2)), said("long.mp4", "fall", seconds(3, 4)))
    assert states(made) == ["conflicting", "changed"]
    assert codes(made) == ["conflict"]
    assert "line 2" in made.problems[0].reason
    assert (folder / "labels.csv").read_text() == "path,label,start_s,end_s\nlong.mp4,sit,1,2\nlong.mp4,fall,3,4\n"
    assert made.counts() == {"fall": {"new": 0, "changed": 1, "equal": 0, "conflicting": 1}}


def test_empty_cells_of_a_row_are_filled_and_others_kept(folder):
    (folder / "labels.csv").write_text("path,label,start_s,end_s,person\nlong.mp4,fall,1,2,\nlong.mp4,fall,3,4,p9\n")
    spans = [said("long.mp4", "fall", seconds(n, n + 1), person="p1") for n in (1, 3)]
    assert states(merge(folder, *spans)) == ["changed", "equal"]
    assert (folder / "labels.csv").read_text().splitlines()[1:] == ["long.mp4,fall,1,2,p1", "long.mp4,fall,3,4,p9"]


def test_two_labels_for_one_clip_in_the_file_are_a_conflict(folder):
    made = plan(folder, said("long.mp4", "fall", seconds(1, 2)), said("long.mp4", "sit", seconds(1, 2), where="line 3"))
    assert states(made) == ["new", "conflicting"]
    assert "x.csv, line 2 has fall" in made.problems[0].reason


def test_shared_time_is_a_line_but_for_two_persons(folder):
    (folder / "labels.csv").write_text("path,label,start_s,end_s\nlong.mp4,sit,0,5\n")
    made = plan(
        folder,
        said("long.mp4", "fall", seconds(4, 6)),
        said("long.mp4", "sit", seconds(4.5, 7)),
        said("long.mp4", "walk", seconds(20, 22), person="p1"),
        said("long.mp4", "walk", seconds(21, 23), person="p2"),
        said("long.mp4", "walk", seconds(5, 5.5), person="p2"),
    )
    lines = [f"{problem.where}: {problem.reason}" for problem in made.overlaps]
    assert len(lines) == 5
    assert any("4–6 s fall: shares time with long.mp4 0–5 s, and labels.csv, line 2 is sit" in line for line in lines)
    assert any("of the same label" in line for line in lines)
    assert not any("20–22" in line for line in lines)


def test_a_segment_after_its_videos_end_is_a_line(folder):
    made = plan(folder, said("long.mp4", "fall", seconds(50, 99)), said("long.mp4", "fall", seconds(39, 42)))
    assert [(problem.code, problem.reason) for problem in made.problems] == [
        ("after_video", "it starts at 50 s, and the video lasts 40 s")
    ]
    assert states(made) == ["new"]
    assert made.notes["long.mp4: segments end after the video, which lasts 40 s"] == 1


def test_rows_of_one_table_name_their_files_in_any_way(folder):
    (folder / "labels.csv").write_text("path,label\nWALK\\A.mp4,walk\n")
    assert states(plan(folder, said("a.mp4", "walk"))) == ["equal"]


def test_numbers_of_tracks_do_not_part_a_video(folder):
    tracks = [
        said("long.mp4", "walk", FrameRange(0, 50), person="track 0", together=True),
        said("long.mp4", "fall", FrameRange(25, 75), person="track 1", together=True),
    ]
    merge(folder, *tracks)
    groups = {clip.person: clip.group for clip in scan_clips(folder).clips if clip.person}
    assert set(groups) == {"track 0", "track 1"}
    assert len(set(groups.values())) == 1


def test_new_rows_join_the_group_that_their_video_has(folder):
    (folder / "labels.csv").write_text("path,label,group\nlong.mp4,day,ward3\n")
    merge(folder, said("long.mp4", "fall", seconds(1, 2)), said("long.mp4", "walk", seconds(3, 4), person="p1"))
    assert [(clip.label, clip.group) for clip in scan_clips(folder).clips] == [
        ("day", "ward3"),
        ("fall", "ward3"),
        ("walk", "p1"),
    ]


def test_missing_ambiguous_and_doubled_names_are_a_line_each(folder):
    (folder / "ward").mkdir()
    (folder / "ward" / "a.mp4").write_bytes(b"video")
    made = plan(
        folder,
        said("gone.mp4", "fall", seconds(1, 2)),
        said("gone.mp4", "fall", seconds(3, 4)),
        said("a.mp4", "fall", seconds(1, 2)),
        said("one/long.mp4", "fall", seconds(1, 2)),
        said("two/long.mp4", "fall", seconds(1, 2)),
        said("walk/a.mp4", "fall", seconds(1, 2)),
    )
    assert sorted(codes(made)) == ["ambiguous_video", "two_names", "two_names", "unknown_video"]
    assert any("gone.mp4 (2 annotations)" in problem.where for problem in made.problems)
    assert [merged.row.path for merged in made.merged] == ["walk/a.mp4"]


def test_frames_that_a_video_lacks_are_a_line(folder):
    made = plan(
        folder, said("long.mp4", "fall", FrameRange(1000, 1200)), said("long.mp4", "walk", FrameRange(998, 1020))
    )
    assert codes(made) == ["after_video"]
    assert [merged.row.segment for merged in made.merged] == [Segment(39_920_000, 40_000_000)]


def test_names_of_files_in_the_tool_reach_nothing_outside(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.mp4"
    outside.write_bytes(b"video")
    (folder / "link.mp4").symlink_to(outside)
    names = (str(outside), "../outside/secret.mp4", "link.mp4", "/etc/passwd", "file:///etc/passwd")
    made = plan(folder, *(said(name, "fall", seconds(1, 2)) for name in names))
    assert set(codes(made)) == {"unknown_video"}
    assert not made.merged


def test_first_import_keeps_what_the_folders_said(folder):
    before = {(clip.name, clip.label, clip.group) for clip in scan_clips(folder).clips}
    made = merge(folder, said("long.mp4", "fall", seconds(1, 2)))
    after = {(clip.name, clip.label, clip.group) for clip in scan_clips(folder).clips}
    assert before - after == {("long.mp4", None, "long")}
    assert {name for name, _, _ in after - before} == {"long.mp4#t=1,2"}
    assert not made.problems


def test_a_row_changed_meanwhile_is_a_conflict_not_overwritten(folder):
    (folder / "labels.csv").write_text("path,label\nlong.mp4,\n")
    labels = LabelsFile.open(folder)
    made = Importer(labels, SpanReader(Timer()), DEFAULT_RULES).plan(
        [("x.csv", AnnotationFile("segments", [said("long.mp4", "fall")]))]
    )
    assert states(made) == ["changed"]
    (folder / "labels.csv").write_text("path,label\nlong.mp4,sit\n")
    made.settle(labels.apply(made.changes))
    assert states(made) == ["conflicting"]
    assert (folder / "labels.csv").read_text() == "path,label\nlong.mp4,sit\n"
