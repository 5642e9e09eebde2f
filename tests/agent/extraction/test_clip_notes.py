"""Notes on a folder's clips: groups that hold nothing out, folders read two ways, overlaps of segments."""

import pytest
from flamest.agent.extraction.clip_notes import clip_notes, gaps
from flamest.agent.extraction.clips import scan_clips
from flamest.agent.extraction.groups import ClipRules, GroupRule


def notes(folder, names, table=None, rules=None):
    """Return the notes of a folder by code."""
    rules = rules or ClipRules()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if table:
        (folder / "labels.csv").write_text(table, encoding="utf-8")
    return {note.code: note for note in clip_notes(scan_clips(folder, rules=rules), rules)}


GOOD = [f"{label}/{person}_{label}_{number}.mp4" for label in ("fall", "walk") for person in "abc" for number in (1, 2)]


def test_groups_of_several_clips_in_every_class_need_no_note(tmp_path):
    assert notes(tmp_path, GOOD) == {}


def test_groups_of_one_clip_each_are_noted(tmp_path):
    found = notes(tmp_path, [f"{label}/{label}_{number}.mp4" for label in ("fall", "walk") for number in range(3)])
    assert list(found) == ["groups_of_one"]
    assert "every one of the 6 groups has one clip" in found["groups_of_one"].text
    assert "labels.csv" in found["groups_of_one"].fix
    assert "[groups]" in found["groups_of_one"].fix


def test_a_group_of_nearly_all_clips_is_noted(tmp_path):
    found = notes(tmp_path, [f"{label}/person1_{number}.mp4" for label in ("fall", "walk") for number in range(5)])
    assert list(found) == ["one_group"]
    assert "'person1' holds 10 of the 10 labelled clips: nothing can be held out" in found["one_group"].text
    more = notes(tmp_path, ["walk/person2_1.mp4"])
    assert "10 of the 11 labelled clips: hardly anything" in more["one_group"].text


def test_classes_of_one_group_are_noted(tmp_path):
    found = notes(tmp_path, [*GOOD, "sit/a_sit_1.mp4", "sit/a_sit_2.mp4"])
    assert found["class_of_one_group"].count == 1
    assert "1 class has one group only: nothing of it can be held out (sit)" in found["class_of_one_group"].text


def test_folders_two_deep_are_noted_with_both_readings_and_the_setting(tmp_path):
    names = [
        f"{label}/person{person}/0{number}.mp4" for label in ("fall", "walk") for person in (1, 2) for number in (1, 2)
    ]
    note = notes(tmp_path, names)["folders_two_deep"]
    assert note.count == 8
    assert "the class of fall/person1/01.mp4 is 'person1', the folder that holds it (2 classes: person1, " in note.text
    assert "by the outermost folder it would be 'fall' (2 classes: fall, walk)" in note.text
    assert 'folder = "top"' in note.fix
    assert notes(tmp_path, [], rules=ClipRules(label_folder="top")) == {}
    table = "path,label\n" + "".join(f"{name},{name.split('/')[0]}\n" for name in names)
    assert "folders_two_deep" not in notes(tmp_path, [], table)


def test_splits_above_the_classes_are_no_second_reading(tmp_path):
    assert notes(tmp_path, [f"{split}/{name}" for split in ("train", "Test", "val") for name in GOOD]) == {}


def test_a_split_as_class_is_noted(tmp_path):
    assert "split_is_class" in notes(tmp_path, ["train/1.mp4", "test/2.mp4"])
    deep = notes(tmp_path / "deep", ["walk/train/a.mp4", "walk/test/b.mp4"])
    assert {"split_is_class", "folders_two_deep"} <= set(deep)


def test_a_pattern_that_misses_clips_is_noted(tmp_path):
    rules = ClipRules(GroupRule("pattern", "/(?P<group>[ab])_"))
    note = notes(tmp_path, GOOD, rules=rules)["pattern_misses"]
    assert note.count == 4
    assert "does not match 4 of 12 clips" in note.text


def test_a_person_in_several_groups_is_noted(tmp_path):
    table = "path,label,group,person\na.mp4,x,g1,p\nb.mp4,x,g2,p\nc.mp4,y,,q\nd.mp4,y,,q\n"
    assert notes(tmp_path, ["a.mp4", "b.mp4", "c.mp4", "d.mp4"], table)["person_in_groups"].count == 1


SEGMENTS = "path,label,start_s,end_s\n"


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        ("r.mp4,x,0,5\nr.mp4,y,4,8\n", "labels_overlap", "r.mp4#t=0,5 and t=4,8 share 1 s (x and y)"),
        ("r.mp4,x,0,5\nr.mp4,x,4.5,8\n", "segments_overlap", "share 0.5 s"),
        ("r.mp4,x,0,50\nr.mp4,x,1,2\nr.mp4,y,3,4\n", "labels_overlap", "r.mp4#t=0,50 and t=3,4 share 1 s"),
        ("r.mp4,x,,\nr.mp4,y,1,2\nr.mp4,y,2,3\n", "whole_and_segments", "r.mp4, and 2 segments of it"),
    ],
)
def test_overlaps_are_noted_and_all_segments_used(tmp_path, rows, code, words):
    note = notes(tmp_path, ["r.mp4"], SEGMENTS + rows)[code]
    assert words in note.text
    assert len(scan_clips(tmp_path).clips) == rows.count("\n")


def test_segments_that_touch_do_not_overlap_and_gaps_are_counted(tmp_path):
    rows = "r.mp4,x,0,5\nr.mp4,y,5,8\nr.mp4,x,10,11.5\ns.mp4,x,,\ns.mp4,y,4,5\n"
    found = notes(tmp_path, ["r.mp4", "s.mp4"], SEGMENTS + rows)
    assert not {"labels_overlap", "segments_overlap"} & set(found)
    assert gaps(scan_clips(tmp_path).clips) == (1, 2.0)


def test_rows_that_are_read_otherwise_are_noted(tmp_path):
    assert notes(tmp_path, ["A.mp4"], "path,label\na.mp4,x\n")["rows_read_otherwise"].count == 1


def test_a_few_pairs_do_not_silence_groups_of_one(tmp_path):
    found = notes(tmp_path, [*(f"walk/walk_{n}.mp4" for n in range(7)), "fall/person1_1.mp4", "fall/person1_2.mp4"])
    assert "each of 7 of 8 groups has one clip" in found["groups_of_one"].text


def test_frames_shared_by_two_groups_are_noted(tmp_path):
    table = """path,label,person,start_s,end_s
rec1.mp4,walk,anna,0,5
rec1.mp4,walk,anna,0.5,2
rec1.mp4,walk,ben,1,4
rec1.mp4,walk,carl,5,6
rec2.mp4,fall,carl,0,5
rec2.mp4,fall,,1,4
"""
    found = notes(tmp_path, ["rec1.mp4", "rec2.mp4"], table)
    assert list(found)[:2] == ["groups_overlap", "person_in_some_rows"]
    assert found["groups_overlap"].count == 2
    assert "rec1.mp4#t=0,5 (anna) and t=1,4 (ben)" in found["groups_overlap"].text
    assert found["person_in_some_rows"].count == 1
    assert "rec2.mp4#t=0,5 is of carl, rec2.mp4#t=1,4 of nobody" in found["person_in_some_rows"].text


def test_a_whole_file_and_its_segment_in_two_groups_are_noted(tmp_path):
    table = "path,label,group,start_s,end_s\nrec1.mp4,walk,a,,\nrec1.mp4,walk,b,1,2\nrec1.mp4,walk,a,3,4\n"
    note = notes(tmp_path, ["rec1.mp4"], table)["groups_overlap"]
    assert note.count == 1
    assert "rec1.mp4 (a) and t=1,2 (b)" in note.text


def test_persons_in_the_outer_folders_have_a_rule(tmp_path):
    names = [f"{person}/{label}/0{n}.mp4" for person in ("anna", "ben") for label in ("walk", "fall") for n in (1, 2)]
    assert 'rule = "folder"' in notes(tmp_path, names)["folders_two_deep"].fix
