"""ActivityNet's JSON: read as its evaluation code documents it, written back, and every damage named."""

from __future__ import annotations

import json

import pytest
from flamest.agent.annotations.activitynet import write_activitynet
from flamest.agent.extraction.labels_table import LabelRow
from flamest.runtime.clip_records import Segment

from .conftest import check_refused, read_json

GOOD = {"label": "walk", "segment": [1.0, 2.5]}
DOCUMENT = {
    "version": "VERSION 1.3",
    "taxonomy": [{"nodeId": 0, "nodeName": "Root", "parentId": None, "parentName": None}],
    "database": {
        "sJFgo9H6zNo": {
            "subset": "training",
            "duration": 82.73,
            "resolution": "320x240",
            "url": "https://www.youtube.com/watch?v=sJFgo9H6zNo",
            "annotations": [
                {"segment": [0.01, 17.25], "label": "Walking the dog"},
                {"segment": [20, 30.5], "label": "Fall"},
            ],
        },
        "testvideo00": {"subset": "testing", "duration": 10.0, "annotations": []},
    },
}


def with_annotation(*annotations):
    return {"database": {"good": {"annotations": [GOOD]}, "bad": {"annotations": list(annotations)}}}


def with_entry(entry, key="bad"):
    return {"database": {key: entry, "good": {"annotations": [GOOD]}}}


def raw(text):
    return (
        '{"database": {"good": {"annotations": [{"label": "walk", "segment": [1.0, 2.5]}]}, "bad": ' + text + "}}"
    ).encode()


def test_the_documented_schema_is_read(tmp_path):
    found = read_json(tmp_path, DOCUMENT)
    assert found.format == "activitynet"
    assert [(each.video, each.label, each.span) for each in found.annotations] == [
        ("sJFgo9H6zNo", "Walking the dog", Segment(10_000, 17_250_000)),
        ("sJFgo9H6zNo", "Fall", Segment(20_000_000, 30_500_000)),
    ]
    assert not found.problems
    assert list(found.notes) == ["videos without annotations, as in a test set"]


def test_written_rows_are_read_again_as_they_were(tmp_path):
    rows = [
        LabelRow(2, "ward/long.mp4", "fall", Segment(12_345_678, 17_000_001), "g", "p1", "c2"),
        LabelRow(3, "ward/long.mp4", "Ärger", Segment(0, 1)),
        LabelRow(4, "b.mp4", "walk", None),
    ]
    found = read_json(tmp_path, write_activitynet(rows, {"ward/long.mp4": 60.0}))
    assert [
        LabelRow(row.line, each.video, each.label, each.span, each.group, each.person, each.camera)
        for row, each in zip(rows, found.annotations, strict=True)
    ] == rows


def test_written_documents_have_what_the_evaluation_code_reads():
    rows = [LabelRow(2, "a.mp4", "fall", Segment(1_500_000, 2_000_000))]
    document = json.loads(write_activitynet(rows, {"a.mp4": 9.5}))
    assert {"version", "taxonomy", "database"} <= set(document)
    entry = document["database"]["a.mp4"]
    assert (entry["subset"], entry["duration"]) == ("training", 9.5)
    assert entry["annotations"][0]["segment"] == [1.5, 2.0]


BAD_FILES = {
    "empty": (b"", "annotations_format"),
    "blank": (b" \n\t", "annotations_format"),
    "words": (b"these are my labels", "annotations_format"),
    "binary": (b"\x00\x01\x02\x03" * 9, "annotations_format"),
    "cut off": (json.dumps(DOCUMENT).encode()[:-20], "annotations_json"),
    "comma at the end": (b'{"database": {"a": {"annotations": []},}}', "annotations_json"),
    "single quotes": (b"{'database': {}}", "annotations_json"),
    "a comment": (b'{"database": {} // all of it\n}', "annotations_json"),
    "two documents": (b'{"database": {}}{"database": {}}', "annotations_json"),
    "not UTF-8": (b'{"database": {"\xff\xfe": {}}}', "annotations_json"),
    "UTF-16": ('{"database": {}}'.encode("utf-16"), "annotations_format"),
    "nested deep": (b'{"database": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "annotations_json"),
    "a huge number": (b'{"database": {"a": {"duration": ' + b"9" * 5000 + b"}}}", "annotations_json"),
    "a control character": (b'{"database": {"a\nb": {}}}', "annotations_json"),
    "a number": (b"[1", "annotations_json"),
    "many brackets": (b'{"database": [' + b"[]," * 4_000_001 + b"[]]}", "too_large"),
    "database a list": (b'{"database": []}', "annotations_structure"),
    "database null": (b'{"database": null}', "annotations_structure"),
    "database text": (b'{"database": "all"}', "annotations_structure"),
    "predictions": (b'{"version": "1.3", "results": {"a": []}}', "annotations_structure"),
    "no database": (b'{"version": "1.3", "taxonomy": []}', "annotations_format"),
    "COCO": (b'{"images": [], "annotations": [], "categories": []}', "annotations_format"),
    "database twice": (b'{"database": {}, "database": {}}', "repeated_key"),
    "a video twice": (b'{"database": {"a": {"annotations": []}, "a": {"annotations": []}}}', "repeated_key"),
}
BAD_ENTRIES = {
    "entry null": (with_entry(None), "bad_entry"),
    "entry a list": (with_entry([GOOD]), "bad_entry"),
    "entry text": (with_entry("training"), "bad_entry"),
    "entry a number": (with_entry(3), "bad_entry"),
    "no annotations": (with_entry({"subset": "training"}), "bad_entry"),
    "annotations null": (with_entry({"annotations": None}), "bad_entry"),
    "annotations an object": (with_entry({"annotations": GOOD}), "bad_entry"),
    "annotations text": (with_entry({"annotations": "walk"}), "bad_entry"),
    "video name empty": (with_entry({"annotations": [GOOD]}, key=""), "no_video_name"),
    "video name blank": (with_entry({"annotations": [GOOD]}, key="  "), "no_video_name"),
    "video name with a line break": (with_entry({"annotations": [GOOD]}, key="a\nb"), "bad_video_name"),
    "video name too long": (with_entry({"annotations": [GOOD]}, key="a" * 5000), "bad_video_name"),
    "video name half a character": (with_entry({"annotations": [GOOD]}, key="\ud800"), "bad_video_name"),
    "annotation null": (with_annotation(None), "bad_entry"),
    "annotation text": (with_annotation("walk"), "bad_entry"),
    "annotation a list": (with_annotation([1, 2]), "bad_entry"),
    "no label": (with_annotation({"segment": [1, 2]}), "no_label"),
    "label null": (with_annotation({"label": None, "segment": [1, 2]}), "no_label"),
    "label empty": (with_annotation({"label": "", "segment": [1, 2]}), "no_label"),
    "label blank": (with_annotation({"label": " \t", "segment": [1, 2]}), "no_label"),
    "label a number": (with_annotation({"label": 7, "segment": [1, 2]}), "bad_label"),
    "label false": (with_annotation({"label": False, "segment": [1, 2]}), "bad_label"),
    "label a list": (with_annotation({"label": ["walk"], "segment": [1, 2]}), "bad_label"),
    "label too long": (with_annotation({"label": "w" * 1001, "segment": [1, 2]}), "bad_label"),
    "label with a NUL": (with_annotation({"label": "wa\0lk", "segment": [1, 2]}), "bad_label"),
    "label with a line break": (with_annotation({"label": "wa\nlk", "segment": [1, 2]}), "bad_label"),
    "label with an escape": (with_annotation({"label": "\x1b[2J", "segment": [1, 2]}), "bad_label"),
    "label half a character": (with_annotation({"label": "\udfff", "segment": [1, 2]}), "bad_label"),
    "person a number": (with_annotation({**GOOD, "person": 4}), "bad_label"),
    "no segment": (with_annotation({"label": "walk"}), "no_segment"),
    "segment null": (with_annotation({"label": "walk", "segment": None}), "no_segment"),
    "segment a number": (with_annotation({"label": "walk", "segment": 3}), "bad_time"),
    "segment an object": (with_annotation({"label": "walk", "segment": {"start": 1, "end": 2}}), "bad_time"),
    "segment of one": (with_annotation({"label": "walk", "segment": [1]}), "bad_time"),
    "segment of three": (with_annotation({"label": "walk", "segment": [1, 2, 3]}), "bad_time"),
    "segment empty list": (with_annotation({"label": "walk", "segment": []}), "bad_time"),
    "start text": (with_annotation({"label": "walk", "segment": ["1", 2]}), "bad_time"),
    "end null": (with_annotation({"label": "walk", "segment": [1, None]}), "bad_time"),
    "end true": (with_annotation({"label": "walk", "segment": [0, True]}), "bad_time"),
    "start negative": (with_annotation({"label": "walk", "segment": [-1, 2]}), "bad_time"),
    "end too late": (with_annotation({"label": "walk", "segment": [1, 1e12]}), "bad_time"),
    "times nested": (with_annotation({"label": "walk", "segment": [[1], [2]]}), "bad_time"),
    "NaN": (raw('{"annotations": [{"label": "x", "segment": [NaN, 2]}]}'), "bad_time"),
    "infinity": (raw('{"annotations": [{"label": "x", "segment": [1, Infinity]}]}'), "bad_time"),
    "minus infinity": (raw('{"annotations": [{"label": "x", "segment": [-Infinity, 1]}]}'), "bad_time"),
    "beyond a float": (raw('{"annotations": [{"label": "x", "segment": [1, 1e999]}]}'), "bad_time"),
    "beyond 64 bits": (raw('{"annotations": [{"label": "x", "segment": [1, ' + "9" * 400 + "]}]}"), "bad_time"),
    "end before start": (with_annotation({"label": "walk", "segment": [5, 2]}), "empty_segment"),
    "end is start": (with_annotation({"label": "walk", "segment": [5, 5]}), "empty_segment"),
    "less than a microsecond": (with_annotation({"label": "walk", "segment": [5, 5.0000001]}), "empty_segment"),
    "after the duration": (
        with_entry({"duration": 4.0, "annotations": [{"label": "x", "segment": [5, 6]}]}),
        "after_video",
    ),
    "label twice": (raw('{"annotations": [{"label": "x", "label": "y", "segment": [1, 2]}]}'), "repeated_key"),
    "segment twice": (raw('{"annotations": [{"label": "x", "segment": [1, 2], "segment": [3, 4]}]}'), "repeated_key"),
    "annotations twice": (raw('{"annotations": [], "annotations": []}'), "repeated_key"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_has_a_named_error(tmp_path, name):
    check_refused(tmp_path, *BAD_FILES[name])


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_bad_entry_is_named_and_the_rest_read(tmp_path, name):
    content, code = BAD_ENTRIES[name]
    found = read_json(tmp_path, content)
    assert [problem.code for problem in found.problems] == [code]
    assert [(each.video, each.label) for each in found.annotations] == [("good", "walk")]


def test_sixty_kinds_of_damage_are_tried():
    assert len(BAD_FILES) + len(BAD_ENTRIES) >= 60
