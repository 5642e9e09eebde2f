"""Label Studio's JSON and JSON-MIN: ranges of frames, choices of whole videos; and every damage named."""

from __future__ import annotations

import json

import pytest
from flamest.agent.annotations import json_text
from flamest.agent.annotations.annotation import FrameRange
from flamest.base.errors import DataError
from flamest.runtime.clip_records import Segment

from .conftest import check_refused, read_json

VIDEO = "/data/upload/2/a1b2c3d4-good.mp4"


def region(label="walk", start=1, end=30, **more):
    return {
        "id": "r1",
        "type": "timelinelabels",
        "from_name": "timeline",
        "to_name": "video",
        "origin": "manual",
        "value": {"ranges": [{"start": start, "end": end}], "timelinelabels": [label], **more},
    }


def choice(*labels):
    return {"id": "c1", "type": "choices", "from_name": "ch", "to_name": "video", "value": {"choices": list(labels)}}


def annotation(*results, **more):
    return {
        "id": 8,
        "completed_by": 1,
        "result": list(results),
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2024-03-09T22:16:08.728353Z",
        **more,
    }


def task(*annotations, video=VIDEO, number=11):
    return {"id": number, "project": 2, "data": {"video": video}, "annotations": list(annotations), "predictions": []}


def record(**controls):
    return {"video": VIDEO, "id": 12, "annotator": 1, "annotation_id": 8, "lead_time": 4.2, **controls}


def spans(found):
    return [(each.label, each.span) for each in found.annotations]


def test_ranges_are_frames_from_one_with_both_ends(tmp_path):
    found = read_json(tmp_path, [task(annotation(region(start=3, end=5), region("fall", 7, 7)))])
    assert spans(found) == [("walk", FrameRange(2, 5)), ("fall", FrameRange(6, 7))]
    assert {each.video for each in found.annotations} == {VIDEO}
    assert all(each.counts_itself and each.counted_rate is None for each in found.annotations)


def test_several_ranges_of_a_region_are_several_segments(tmp_path):
    found = read_json(tmp_path, [task(annotation(region(ranges=[{"start": 1, "end": 2}, {"start": 9, "end": 12}])))])
    assert spans(found) == [("walk", FrameRange(0, 2)), ("walk", FrameRange(8, 12))]


def test_the_rate_that_a_result_states_is_kept(tmp_path):
    found = read_json(tmp_path, [task(annotation(region(framesCount=240, duration=10)))])
    assert found.annotations[0].counted_rate == 24


def test_choices_are_the_whole_videos(tmp_path):
    found = read_json(tmp_path, task(annotation(choice("Fall"))))
    assert spans(found) == [("Fall", None)]


def test_labels_of_the_audio_are_seconds(tmp_path):
    result = {"type": "labels", "value": {"start": 1.25, "end": 3.5, "channel": 0, "labels": ["Kick"]}}
    assert spans(read_json(tmp_path, [task(annotation(result))])) == [("Kick", Segment(1_250_000, 3_500_000))]


def test_json_min_says_the_same(tmp_path):
    ranges = [{"ranges": [{"start": 3, "end": 5}], "timelinelabels": ["walk"]}]
    found = read_json(tmp_path, [record(timeline=ranges), record(choice="Fall"), record(choices={"choices": ["Lie"]})])
    assert spans(found) == [("walk", FrameRange(2, 5)), ("Fall", None), ("Lie", None)]
    named = read_json(tmp_path, [record(posture="Sit", ward="north")], choices="posture")
    assert spans(named) == [("Sit", None)]


def test_what_is_left_out_is_noted(tmp_path):
    box = {"type": "videorectangle", "id": "b", "value": {"sequence": [{"frame": 1, "enabled": True}], "labels": ["x"]}}
    phantom = {"type": "timelinelabels", "id": "b", "value": {"sequence": [], "timelinelabels": ["x"]}}
    per_region = {**choice("Bad"), "id": "r1"}
    content = [
        {**task(annotation(region(), box, phantom, per_region)), "predictions": [{"result": [region("no")]}]},
        task(annotation(region("no"), was_cancelled=True), number=13),
        task(number=14),
    ]
    found = read_json(tmp_path, content)
    assert spans(found) == [("walk", FrameRange(0, 30))]
    assert not found.problems
    assert len(found.notes) == 6


def test_of_several_annotators_ground_truth_or_agreement_counts(tmp_path):
    same = [task(annotation(region()), annotation({**region(), "id": "other"}))]
    assert spans(read_json(tmp_path, same)) == [("walk", FrameRange(0, 30))]
    truth = [task(annotation(region("fall")), annotation(region(), ground_truth=True))]
    assert spans(read_json(tmp_path, truth)) == [("walk", FrameRange(0, 30))]
    differing = read_json(
        tmp_path, [task(annotation(region("fall")), annotation(region())), task(annotation(choice("x")))]
    )
    assert [problem.code for problem in differing.problems] == ["several_annotations"]
    assert spans(differing) == [("x", None)]


def test_exports_of_old_versions_have_completions(tmp_path):
    old = {"id": 1, "data": {"video_url": "v.mp4"}, "completions": [annotation(region())]}
    assert spans(read_json(tmp_path, [old])) == [("walk", FrameRange(0, 30))]


def test_the_video_is_the_one_text_with_a_videos_suffix(tmp_path):
    data = {"ward": "north", "clip": "https://host/x/good%201.MP4?token=1", "fps": 30}
    found = read_json(tmp_path, [{"id": 1, "data": data, "annotations": [annotation(region())]}])
    assert found.annotations[0].video == data["clip"]


GOOD = task(annotation(region("good", 1, 2)), number=99)


def value(**changes):
    """A task whose only region has other values."""
    return task(annotation({**region(), "value": {**region()["value"], **changes}}))


def spans_of(*ranges):
    return value(ranges=list(ranges))


def raw(text):
    return ("[" + json.dumps(GOOD) + "," + text + "]").encode()


def raw_range(text):
    return raw(json.dumps(task(annotation(region()))).replace('[{"start": 1, "end": 30}]', text))


def without(entry, *keys):
    return {key: item for key, item in entry.items() if key not in keys}


BAD_FILES = {
    "cut off": (json.dumps([GOOD]).encode()[:-9], "annotations_json"),
    "a comma at the end": (b'[{"id": 1, "data": {}},]', "annotations_json"),
    "lines of JSON": (json.dumps(GOOD).encode() + b"\n" + json.dumps(GOOD).encode(), "annotations_json"),
    "not UTF-8": (b'[{"data": {"video": "\xe4.mp4"}}]', "annotations_json"),
    "nested deep": (b"[" * 200_000, "annotations_json"),
    "a number of many digits": (b"[" + b"1" * 9000 + b"]", "annotations_json"),
    "single quotes": (b"[{'id': 1}]", "annotations_json"),
    "a list of numbers": (b"[1, 2, 3]", "annotations_structure"),
    "a list of texts": (b'["a.mp4"]', "annotations_structure"),
    "a list of lists": (b"[[1]]", "annotations_structure"),
    "a list of null": (b"[null]", "annotations_structure"),
    "an object of other keys": (b'{"tasks": []}', "annotations_format"),
}
BAD_TASKS = {
    "task a number": (7, "bad_entry"),
    "task null": (None, "bad_entry"),
    "task a list": ([], "bad_entry"),
    "data null": ({**task(), "data": None}, "bad_entry"),
    "data text": ({**task(), "data": "a.mp4"}, "bad_entry"),
    "data empty": ({**task(annotation(region())), "data": {}}, "no_video_name"),
    "video null": (task(annotation(region()), video=None), "no_video_name"),
    "video empty": (task(annotation(region()), video=""), "no_video_name"),
    "video a number": (task(annotation(region()), video=5), "bad_video_name"),
    "video too long": (task(annotation(region()), video="v" * 5000 + ".mp4"), "bad_video_name"),
    "video with a line break": (task(annotation(region()), video="a\nb.mp4"), "bad_video_name"),
    "two videos": ({**task(annotation(region())), "data": {"left": "a.mp4", "right": "b.mp4"}}, "no_video_name"),
    "annotations null": ({**task(), "annotations": None}, "bad_entry"),
    "annotations an object": ({**task(), "annotations": {}}, "bad_entry"),
    "no annotations": (without(task(), "annotations"), "bad_entry"),
    "annotation null": (task(None), "bad_entry"),
    "annotation text": (task("walk"), "bad_entry"),
    "result null": (task(annotation(result=None)), "bad_entry"),
    "result an object": (task({"result": {}}), "bad_entry"),
    "no result": (task({"id": 3}), "bad_entry"),
    "region null": (task(annotation(None)), "bad_entry"),
    "region text": (task(annotation("walk")), "bad_entry"),
    "an identifier that is an object": (task(annotation({**region(), "id": {}, "value": None})), "bad_entry"),
    "no type": (task(annotation(without(region(), "type"))), "bad_entry"),
    "type a list": (task(annotation({**region(), "type": ["timelinelabels"]})), "bad_entry"),
    "value null": (task(annotation({**region(), "value": None})), "bad_entry"),
    "value a list": (task(annotation({**region(), "value": []})), "bad_entry"),
    "no labels": (task(annotation({**region(), "value": {"ranges": [{"start": 1, "end": 2}]}})), "no_label"),
    "labels null": (value(timelinelabels=None), "no_label"),
    "labels empty": (value(timelinelabels=[]), "no_label"),
    "labels text": (value(timelinelabels="walk"), "bad_label"),
    "two labels": (value(timelinelabels=["walk", "fall"]), "several_labels"),
    "label null": (value(timelinelabels=[None]), "no_label"),
    "label empty": (value(timelinelabels=[""]), "no_label"),
    "label a number": (value(timelinelabels=[3]), "bad_label"),
    "label too long": (value(timelinelabels=["w" * 1001]), "bad_label"),
    "label with an escape": (value(timelinelabels=["\x1b[1m"]), "bad_label"),
    "label half a character": (value(timelinelabels=["\ud83d"]), "bad_label"),
    "no choice": (task(annotation(choice())), "no_label"),
    "two choices": (task(annotation(choice("a", "b"))), "several_labels"),
    "no ranges": (task(annotation({**region(), "value": {"timelinelabels": ["x"]}})), "no_segment"),
    "ranges null": (value(ranges=None), "no_segment"),
    "ranges empty": (value(ranges=[]), "no_segment"),
    "ranges an object": (value(ranges={"start": 1, "end": 2}), "no_segment"),
    "range a list": (spans_of([1, 2]), "bad_entry"),
    "no start": (spans_of({"end": 2}), "bad_frame"),
    "start null": (spans_of({"start": None, "end": 2}), "bad_frame"),
    "end null": (spans_of({"start": 1, "end": None}), "bad_frame"),
    "start text": (spans_of({"start": "1", "end": 2}), "bad_frame"),
    "start true": (spans_of({"start": True, "end": 2}), "bad_frame"),
    "start a fraction": (spans_of({"start": 1.5, "end": 2}), "bad_frame"),
    "frame nought": (spans_of({"start": 0, "end": 2}), "bad_frame"),
    "frame negative": (spans_of({"start": -3, "end": 2}), "bad_frame"),
    "frame huge": (spans_of({"start": 1, "end": 10**30}), "bad_frame"),
    "end before start": (spans_of({"start": 9, "end": 2}), "empty_segment"),
    "seconds text": (
        task(annotation({"type": "labels", "value": {"start": "1", "end": 2, "labels": ["x"]}})),
        "bad_time",
    ),
    "seconds missing": (task(annotation({"type": "labels", "value": {"start": 1, "labels": ["x"]}})), "bad_time"),
    "seconds backwards": (
        task(annotation({"type": "labels", "value": {"start": 2, "end": 1, "labels": ["x"]}})),
        "empty_segment",
    ),
    "NaN": (raw_range('[{"start": NaN, "end": 3}]'), "bad_frame"),
    "infinity": (raw_range('[{"start": 1, "end": Infinity}]'), "bad_frame"),
    "start twice": (raw_range('[{"start": 1, "start": 2, "end": 3}]'), "repeated_key"),
    "data twice": (raw('{"data": {"video": "a.mp4"}, "data": {"video": "b.mp4"}, "annotations": []}'), "repeated_key"),
    "a record without a label": (record(), "no_label"),
    "a record whose label is unknown": (record(posture="Sit"), "no_label"),
    "a record without a video": (without(record(choice="x"), "video"), "no_video_name"),
    "a record with two labels": (record(choice={"choices": ["a", "b"]}), "several_labels"),
    "a record with a bad range": (
        record(t=[{"ranges": [{"start": 5, "end": 1}], "timelinelabels": ["x"]}]),
        "empty_segment",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_has_a_named_error(tmp_path, name):
    check_refused(tmp_path, *BAD_FILES[name])


@pytest.mark.parametrize("name", BAD_TASKS)
def test_a_bad_task_is_named_and_the_rest_read(tmp_path, name):
    content, code = BAD_TASKS[name]
    found = read_json(tmp_path, content if isinstance(content, bytes) else [GOOD, content])
    assert [problem.code for problem in found.problems] == [code]
    assert ("good", FrameRange(0, 2)) in spans(found)
    assert len(found.annotations) == 1


def test_a_file_that_is_too_large_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "MAX_BRACKETS", 100)
    with pytest.raises(DataError) as raised:
        read_json(tmp_path, [GOOD] * 50)
    assert raised.value.code == "too_large"


def test_a_table_instead_of_json_names_the_right_export(tmp_path):
    table = b'id,video,timeline,annotator\r\n1,a.mp4,"[{""ranges"": []}]",1\r\n'
    error = check_refused(tmp_path, table, "annotations_json", format="label-studio")
    assert "is a table" in error.message
    assert "Export, JSON or JSON-MIN" in error.fix
    error = check_refused(tmp_path, table.replace(b",", b"\t"), "annotations_json", format="activitynet")
    assert "--format segments" in error.fix
    assert "is a table" not in check_refused(tmp_path, b"[1, 2", "annotations_json", format="label-studio").message


def test_sixty_kinds_of_damage_are_tried():
    assert len(BAD_FILES) + len(BAD_TASKS) >= 60
