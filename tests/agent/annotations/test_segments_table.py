"""Tables of video,label,start,end: read in the forms that spreadsheets give them, written, and every damage named."""

from __future__ import annotations

import pytest
from flamest.agent.annotations import annotation
from flamest.agent.annotations.reading import ReadingOptions, read_annotations
from flamest.agent.annotations.segments_table import read_segments, write_segments
from flamest.agent.extraction.labels_table import LabelRow
from flamest.base.errors import DataError
from flamest.runtime.clip_records import Segment

HEADER = "video,label,start,end\n"
GOOD = "good.mp4,walk,1,2.5\n"


def read(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_annotations(path, ReadingOptions("segments"))


def spans(found):
    return [(each.video, each.label, each.span) for each in found.annotations]


def test_columns_are_found_by_name_in_any_order(tmp_path):
    found = read(tmp_path, "end_time,Class,ward,FileName,begin,person\n2.5,walk,north,a.mp4,1,p1\n")
    assert spans(found) == [("a.mp4", "walk", Segment(1_000_000, 2_500_000))]
    assert found.annotations[0].person == "p1"
    assert list(found.notes) == ["the column 'ward' is not read"]


@pytest.mark.parametrize(
    "content",
    [
        HEADER + "a.mp4,walk,1.5,2.5\n",
        "\ufeff" + HEADER + "a.mp4,walk,1.5,2.5",
        "video;label;start;end\r\na.mp4;walk;1,5;2,5\r\n",
        "video\tlabel\tstart\tend\na.mp4\twalk\t1.5\t2.5\n",
        HEADER + "\na.mp4, walk ,00:01.5,0:00:02.5\n,,,\n",
        HEADER + '"a.mp4","walk","1.5","2.5"\n',
        HEADER + "a.mp4,walk,1.5e0,25e-1\n",
    ],
)
def test_forms_of_spreadsheets_say_the_same(tmp_path, content):
    assert spans(read(tmp_path, content)) == [("a.mp4", "walk", Segment(1_500_000, 2_500_000))]


def test_a_row_without_times_is_the_whole_video(tmp_path):
    assert spans(read(tmp_path, HEADER + "a.mp4,walk,,\n")) == [("a.mp4", "walk", None)]


def test_written_rows_are_read_again_as_they_were(tmp_path):
    rows = [
        LabelRow(2, 'ward/"long", 1.mp4', "fall, hard", Segment(12_345_678, 17_000_001), "g", "p1", "c2"),
        LabelRow(3, "ward/b.mp4", "Ärger", Segment(0, 1)),
        LabelRow(4, "b.mp4", "walk", None),
    ]
    found = read(tmp_path, write_segments(rows))
    assert [
        LabelRow(row.line, each.video, each.label, each.span, each.group, each.person, each.camera)
        for row, each in zip(rows, found.annotations, strict=True)
    ] == rows
    assert write_segments([LabelRow(2, "a.mp4", "x", None)]) == b"video,label,start,end\na.mp4,x,,\n"


BAD_FILES = {
    "empty": b"",
    "only a mark": "\ufeff".encode(),
    "UTF-16": (HEADER + GOOD).encode("utf-16"),
    "UTF-16 without a mark": (HEADER + GOOD).encode("utf-16-le"),
    "Latin-1": (HEADER + "ä.mp4,walk,1,2\n").encode("latin-1"),
    "a NUL": (HEADER + "a\0.mp4,walk,1,2\n").encode(),
    "no header": GOOD.encode(),
    "header of labels.csv with frames": b"video,label,start_frame,end_frame\na,b,1,2\n",
    "frames": b"video,label,start,end,first_frame\na,b,1,2,3\n",
    "no video column": b"name,label,start,end\na,b,1,2\n",
    "no label column": b"video,start,end\na,1,2\n",
    "no start column": b"video,label,end\na,b,2\n",
    "no end column": b"video,label,start\na,b,2\n",
    "two labels": b"video,label,class,start,end\na,b,c,1,2\n",
    "two videos": b"video,path,label,start,end\na,b,c,1,2\n",
    "column twice": b"video,label,start,end,end\na,b,1,2,2\n",
    "mixed separators": b"video,label;start;end\na,b;1;2\n",
    "blanks as separators": b"video label start end\na b 1 2\n",
    "a quote in the header": b'video,"label,start,end\na,b,1,2\n',
    "a quote without an end": (HEADER + GOOD + 'a.mp4,"walk,1,2\n').encode(),
    "a line too long": (HEADER + "a.mp4," + "x" * 40_000 + ",1,2\n").encode(),
    "only blank lines": b"\n\n\n",
    "XML": b"<annotations></annotations>",
    "a .zip": b"PK\3\4" + bytes(40),
}
BAD_ROWS = {
    "too few columns": ("bad.mp4,fall,1", "bad_row"),
    "too many columns": ("bad.mp4,fall,1,2,3", "bad_row"),
    "text after a quote": ('"bad".mp4,fall,1,2', "bad_row"),
    "one cell": ("bad.mp4", "bad_row"),
    "no video": (",fall,1,2", "no_video_name"),
    "blank video": ("  ,fall,1,2", "no_video_name"),
    "video with a line break": ('"ba\nd.mp4",fall,1,2', "bad_video_name"),
    "video with an escape": ("\x1b[2J.mp4,fall,1,2", "bad_video_name"),
    "video too long": ("v" * 5000 + ",fall,1,2", "bad_video_name"),
    "no label": ("bad.mp4,,1,2", "no_label"),
    "blank label": ("bad.mp4,  ,1,2", "no_label"),
    "label too long": ("bad.mp4," + "x" * 1001 + ",1,2", "bad_label"),
    "label with a line break": ('bad.mp4,"fa\nll",1,2', "bad_label"),
    "label with a tab": ("bad.mp4,fa\tll,1,2", "bad_label"),
    "label with a zero-width space": ("bad.mp4,fa\u200bll,1,2", "bad_label"),
    "label that turns its direction": ("bad.mp4,\u202ellaf,1,2", "bad_label"),
    "label with a delete": ("bad.mp4,fa\x7fll,1,2", "bad_label"),
    "no start": ("bad.mp4,fall,,2", "bad_time"),
    "no end": ("bad.mp4,fall,1,", "bad_time"),
    "start a word": ("bad.mp4,fall,one,2", "bad_time"),
    "end a word": ("bad.mp4,fall,1,end", "bad_time"),
    "NaN": ("bad.mp4,fall,nan,2", "bad_time"),
    "infinity": ("bad.mp4,fall,1,inf", "bad_time"),
    "beyond a float": ("bad.mp4,fall,1,1e999", "bad_time"),
    "a year later": ("bad.mp4,fall,1,99999999999", "bad_time"),
    "negative": ("bad.mp4,fall,-1,2", "bad_time"),
    "with a unit": ("bad.mp4,fall,1s,2s", "bad_time"),
    "two points": ("bad.mp4,fall,1.2.3,4", "bad_time"),
    "a hexadecimal number": ("bad.mp4,fall,0x1,2", "bad_time"),
    "underscores": ("bad.mp4,fall,1_0,20", "bad_time"),
    "other digits": ("bad.mp4,fall,١,٢", "bad_time"),
    "a comma in quotes": ('bad.mp4,fall,"1,5",2', "bad_time"),
    "75 seconds on a clock": ("bad.mp4,fall,00:75,02:00", "bad_time"),
    "75 minutes on a clock": ("bad.mp4,fall,1:75:00,2:00:00", "bad_time"),
    "clock with four parts": ("bad.mp4,fall,1:2:3:4,5", "bad_time"),
    "a time of day": ("bad.mp4,fall,10:15 am,10:16 am", "bad_time"),
    "a date": ("bad.mp4,fall,2024-01-01,2024-01-02", "bad_time"),
    "end before start": ("bad.mp4,fall,3,2", "empty_segment"),
    "end is start": ("bad.mp4,fall,2,2", "empty_segment"),
    "both nought": ("bad.mp4,fall,0,0", "empty_segment"),
    "under a microsecond": ("bad.mp4,fall,1,1.0000001", "empty_segment"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_table_has_a_named_error(tmp_path, name):
    with pytest.raises(DataError) as raised:
        read(tmp_path, BAD_FILES[name])
    assert raised.value.code == "annotations_table"
    assert "line" in raised.value.message


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_and_the_rest_read(tmp_path, name):
    row, code = BAD_ROWS[name]
    found = read(tmp_path, HEADER + row + "\n" + GOOD)
    assert [(problem.where, problem.code) for problem in found.problems] == [("line 2", code)]
    assert [each.video for each in found.annotations] == ["good.mp4"]


def test_a_file_of_hardly_any_usable_row_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation, "MAX_PROBLEMS", 10)
    with pytest.raises(DataError) as raised:
        read(tmp_path, HEADER + "bad.mp4,,1,2\n" * 11)
    assert raised.value.code == "too_many"


def test_sixty_kinds_of_damage_are_tried():
    assert len(BAD_FILES) + len(BAD_ROWS) >= 60


def test_the_separator_line_of_a_spreadsheet_is_skipped():
    found = read_segments(b"sep=;\r\nvideo;label;start;end\r\na.mp4;fall;1,5;2,5\r\nb.mp4;;1;2\r\n", "x.csv")
    assert [(each.label, each.span) for each in found.annotations] == [("fall", Segment.of_seconds(1.5, 2.5))]
    assert [problem.where for problem in found.problems] == ["line 4"]


@pytest.mark.parametrize("time", ["1.234,5", "1,5,0", "1,x", "75:75,5"])
def test_a_time_is_quoted_as_it_is_written(tmp_path, time):
    (problem,) = read(tmp_path, f"video;label;start;end\na.mp4;fall;{time};99999\n").problems
    assert problem.code == "bad_time"
    assert time in problem.reason


@pytest.mark.parametrize(
    ("content", "fix"),
    [
        ("video,label,start,end\na.mp4,st\u00fcrz,1,2\n".encode("latin-1"), "CSV UTF-8"),
        (b"id,video,choice,annotator,annotation_id\n1,a.mp4,walk,1,7\n", "Export, JSON"),
        (b'id,video,tl\n1,a.mp4,"[{""ranges"":[],""timelinelabels"":[""x""]}]"\n', "Export, JSON"),
    ],
)
def test_a_table_of_another_kind_has_its_own_way_out(content, fix):
    with pytest.raises(DataError) as caught:
        read_segments(content, "x.csv")
    assert fix in caught.value.fix
