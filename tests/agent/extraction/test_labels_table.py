"""labels.csv: rows with segments, persons and cameras; what is wrong in a row or in the file, and where."""

import pytest
from flamest.agent.extraction.clips import scan_clips
from flamest.agent.extraction.labels_table import parse_labels
from flamest.base.errors import DataError
from flamest.runtime.clip_records import Segment


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def scan(folder, text):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return scan_clips(folder)


def problems(folder):
    return {problem.name: (problem.code, problem.reason) for problem in folder.problems}


def test_every_column_in_any_order_is_read():
    table = parse_labels(
        b"end_s,camera,label,path,person,group,start_s\n17,cam-2,fall,ward-3/1.mp4,patient-17,kitchen,12.5\n,,,b.mp4,,,\n"
    )
    first, second = table.rows
    assert (first.line, first.path, first.label) == (2, "ward-3/1.mp4", "fall")
    assert (first.group, first.person, first.camera) == ("kitchen", "patient-17", "cam-2")
    assert first.segment == Segment(12_500_000, 17_000_000)
    assert (second.label, second.segment, second.group) == (None, None, "")
    assert table.bad == ()


def test_segments_of_one_file_are_clips_of_their_own(tmp_path):
    put(tmp_path, "rec.mp4")
    folder = scan(tmp_path, "path,label,start_s,end_s\nrec.mp4,fall,12.5,17\nrec.mp4,walk,2,3.25\nrec.mp4,,,\n")
    assert [(clip.name, clip.label, clip.segment) for clip in folder.clips] == [
        ("rec.mp4", None, None),
        ("rec.mp4#t=2,3.25", "walk", Segment(2_000_000, 3_250_000)),
        ("rec.mp4#t=12.5,17", "fall", Segment(12_500_000, 17_000_000)),
    ]
    assert {clip.group for clip in folder.clips} == {"rec"}
    assert {clip.file_name for clip in folder.clips} == {"rec.mp4"}
    assert {clip.path.name for clip in folder.clips} == {"rec.mp4"}


def test_a_group_comes_from_column_then_person_then_rule(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4", "lena_run1.mp4")
    folder = scan(tmp_path, "path,label,group,person\na.mp4,run,g,p\nb.mp4,run,,p\nlena_run1.mp4,run,,\n")
    assert [(clip.group, clip.grouped_by) for clip in folder.clips] == [
        ("g", "group"),
        ("p", "person"),
        ("lena", "rule"),
    ]


ROWS = {
    "a.mp4,x": ("bad_row", "2 columns, expected 4: path,label,start_s,end_s"),
    "a.mp4,x,1,2,3": ("bad_row", "5 columns, expected 4"),
    ",x,,": ("bad_path", "expected a path inside the folder"),
    "/etc/passwd,x,,": ("bad_path", "expected a path inside the folder"),
    "x/../../a.mp4,x,,": ("bad_path", "expected a path inside the folder"),
    "C:\\videos\\a.mp4,x,,": ("bad_path", "starts at a drive"),
    "\\\\server\\videos\\a.mp4,x,,": ("bad_path", "starts at a drive"),
    "a.mp4,x,1,": ("bad_segment", "start_s without end_s: a segment needs both"),
    "a.mp4,x,,1": ("bad_segment", "end_s without start_s"),
    "a.mp4,x,5,5": ("bad_segment", "the segment from 5 to 5 s is empty: expected end_s after start_s"),
    "a.mp4,x,5,4.5": ("bad_segment", "the segment from 5 to 4.5 s is empty"),
    "a.mp4,x,0,0.0000001": ("bad_segment", "is empty"),
    "a.mp4,x,-1,5": ("bad_segment", "start_s -1 is outside of 0 to"),
    "a.mp4,x,0,1e300": ("bad_segment", "end_s 1e300 is outside of 0 to"),
    "a.mp4,x,nan,5": ("bad_segment", "start_s 'nan' is not a number of seconds"),
    "a.mp4,x,0,inf": ("bad_segment", "end_s 'inf' is not a number of seconds"),
    'a.mp4,x,"1,5",3': ("bad_segment", "start_s '1,5' has a decimal comma, expected a point: 1.5"),
    "a.mp4,x,00:01:30.5,95": ("bad_segment", "'00:01:30.5' is a clock's notation, expected seconds: 90.5"),
    "a.mp4,x,1:30,95": ("bad_segment", "expected seconds: 90 (or 5400, if these are hours)"),
    "a.mp4,x,12s,15": ("bad_segment", "start_s '12s' is not a number of seconds"),
    "a.mp4,x,1_0,15": ("bad_segment", "start_s '1_0' is not a number of seconds"),
    '"a.mp4"b,x,,': ("bad_row", "text after a closing quote"),
    "a.mp4,fa\u200bll,,": (
        "bad_name",
        "the label has a letter that is not seen or turns the reading direction, U+200B",
    ),
    "a.mp4,\u202ellaf,,": ("bad_name", "U+202E at place 1: write it again without"),
    "a.mp4,fa\x85ll,,": ("bad_name", "U+0085 at place 3"),
    "b.mp4,y,,": ("repeated_row", "the clip is in line 2 already, with label x: that line is used"),
    "b.mp4,,,": ("repeated_row", "the clip is in line 2 already"),
}


@pytest.mark.parametrize("row", ROWS)
def test_an_unusable_row_is_named_and_the_others_read(tmp_path, row):
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    folder = scan(tmp_path, f"path,label,start_s,end_s\nb.mp4,x,,\n{row}\nc.mp4,x,1,2\n")
    assert [clip.name for clip in folder.clips] == ["b.mp4", "c.mp4#t=1,2"]
    (name, (code, reason)) = next(iter(problems(folder).items()))
    expected_code, words = ROWS[row]
    assert (name, code) == ("labels.csv, line 3", expected_code)
    assert words in reason


def test_a_missing_file_is_named_with_its_line(tmp_path):
    folder = scan(tmp_path, "path,label,start_s,end_s\ngone.mp4,x,1,2\n")
    assert problems(folder) == {"gone.mp4#t=1,2": ("missing", "no such file (labels.csv, line 2)")}


def test_a_repeated_row_of_the_same_words_is_noted_and_used_once(tmp_path):
    put(tmp_path, "a.mp4")
    folder = scan(tmp_path, "path,label,start_s,end_s\na.mp4,x,1,2\n./a.mp4,x,1.0,2.000\n")
    assert [clip.name for clip in folder.clips] == ["a.mp4#t=1,2"]
    assert folder.notes == ("labels.csv, line 3: the clip is in line 2 already, with the same words",)
    assert folder.problems == ()


def test_a_quote_over_lines_says_which_lines_are_lost(tmp_path):
    put(tmp_path, "a.mp4", "c.mp4")
    folder = scan(tmp_path, 'path,label\n"a.mp4,x\nb.mp4,"x\nc.mp4,x\n')
    assert [clip.name for clip in folder.clips] == ["c.mp4"]
    assert problems(folder) == {
        "labels.csv, line 2": ("bad_row", "there is text after a closing quote; lines 2 to 3 are not read")
    }


# --- names in another case, with other slashes ---


def test_a_unique_file_in_another_case_is_used_and_said(tmp_path):
    put(tmp_path, "Ward-3/Rec.MP4", "a.mp4", "A.mp4")
    folder = scan(tmp_path, "path,label\nward-3/rec.mp4,x\na.MP4,x\n")
    assert [clip.name for clip in folder.clips] == ["Ward-3/Rec.MP4"]
    (note,) = folder.notes[:1]
    assert note.startswith("labels.csv, line 2: ward-3/rec.mp4 is not there; Ward-3/Rec.MP4 is used")
    assert problems(folder)["a.MP4"][0] == "missing"
    assert "A.mp4 and a.mp4 differ from it in case alone" in folder.notes[1]


def test_an_exact_name_wins_over_one_in_another_case(tmp_path):
    put(tmp_path, "a.mp4", "A.mp4")
    folder = scan(tmp_path, "path,label\na.mp4,x\nA.mp4,y\n")
    assert [(clip.name, clip.label) for clip in folder.clips] == [("A.mp4", "y"), ("a.mp4", "x")]
    assert folder.notes == ()


def test_backslashes_are_read_as_slashes_and_said(tmp_path):
    put(tmp_path, "ward-3/1.mp4")
    folder = scan(tmp_path, "path,label\nward-3\\1.mp4,x\nWARD-3\\1.mp4,x\n")
    assert [clip.name for clip in folder.clips] == ["ward-3/1.mp4"]
    assert folder.notes[0] == "labels.csv, line 2: ward-3\\1.mp4 is read as ward-3/1.mp4"
    assert len(folder.notes) == 3, "the second is in another case, and repeats the first"


def test_accents_match_in_either_unicode_form(tmp_path):
    put(tmp_path, "Pfle\u0301ge.mp4")
    folder = scan(tmp_path, "path,label\nPfl\u00e9ge.mp4,x\n")
    assert len(folder.clips) == 1


def test_a_search_in_another_case_stays_inside_the_folder(tmp_path):
    put(tmp_path, "outside/Secret.mp4", "videos/b.mp4")
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "videos" / "Loop").symlink_to(tmp_path / "videos")
    folder = scan(tmp_path / "videos", "path,label\nlink/secret.mp4,x\nloop/loop/loop/B.mp4,x\nlink/../b.mp4,x\n")
    assert folder.clips == ()
    assert folder.notes == ()


# --- files that are no such table ---


@pytest.mark.parametrize(
    ("content", "message", "fix"),
    [
        (b"", "line 1: the file is empty, expected path,label", "start the file with the line path,label"),
        (b"\xef\xbb\xbf", "line 1: the file is empty", "path,label"),
        (b"file,label\na.mp4,x\n", "line 1: the columns are file,label, expected path,label", "import-labels"),
        (b"path,label,group,more\n", "unknown: more", "name the columns"),
        (b"path,label,\n", "unknown: a column without a name", "name the columns"),
        (b"path,group\n", "expected path,label, each once", "path,label"),
        (b"path,label,label\n", "expected path,label, each once", "path,label"),
        (b"path;label;group\na.mp4;x;g\n", "separated by semicolons, expected commas", "CSV UTF-8 (comma delimited)"),
        (b"path\tlabel\na.mp4\tx\n", "separated by tabs, expected commas", "CSV UTF-8 (comma delimited)"),
        ("path,label\na.mp4,x\n".encode("utf-16"), "UTF-16 text", "UTF-8"),
        ("path,label\na.mp4,x\nb.mp4,Stürze\n".encode("cp1252"), "line 3: is not UTF-8 text", "UTF-8"),
        (b'path,label\na.mp4,x\n"b.mp4,x\nc.mp4,x\n', "line 3: a quote has no end", "close the quote"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_a_fix(content, message, fix):
    with pytest.raises(DataError) as caught:
        parse_labels(content)
    assert caught.value.code == "labels_csv"
    assert message in caught.value.message
    assert fix in caught.value.fix
