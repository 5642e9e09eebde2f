"""Label Studio's exports JSON and JSON-MIN: ranges of a video's timeline, and choices for a whole video.

Tasks: https://labelstud.io/guide/task_format ; timeline: https://labelstud.io/tags/timelinelabels ;
JSON-MIN: https://github.com/HumanSignal/label-studio-sdk/blob/master/src/label_studio_sdk/converter/converter.py

- ``ranges`` hold frames from 1, both ends among them: [start - 1, end) from 0, as its own backend reads them:
  https://github.com/HumanSignal/label-studio-ml-backend/blob/master/label_studio_ml/examples/yolo/utils/converter.py
- Frames are counted at the project's ``frameRate``, 24 unless it is set (https://labelstud.io/tags/video): the export
  does not say it, except in a result's ``framesCount`` and ``duration``.
- ``labels`` with ``start`` and ``end`` in seconds come from the audio of the video.
- A result of ``timelinelabels`` without ``ranges`` is a copy of a box:
  https://github.com/HumanSignal/label-studio/issues/9744
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...base.errors import DataError
from ..extraction.labels_table import MAX_TIME_S
from .annotation import (
    Annotation,
    AnnotationFile,
    FrameRange,
    Unusable,
    kind_of,
    read_frame,
    read_label,
    read_segment,
    read_video_name,
    shown,
)
from .json_text import RepeatedKeys
from .video_names import looks_like_video

FORMAT = "label-studio"
VIDEO_KEYS = ("video", "video_url", "url", "file", "path")
MIN_KEYS = frozenset(
    {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "annotations"}
)
CHOICE_KEYS = ("choice", "choices", "label", "class", "action", "activity")


def read_label_studio(document: object, name: str, *, choices: str = "") -> AnnotationFile:
    """Read a decoded document. ``choices``: the control of whole videos' labels in JSON-MIN, by default CHOICE_KEYS.

    Raises DataError ``annotations_structure`` where it is none; ``name`` is the file's.
    """
    tasks = document if isinstance(document, list) else [document]
    if not all(isinstance(task, dict) for task in tasks[:1]):
        raise DataError(
            f"{name} is not an export of Label Studio: it holds {kind_of(tasks[0])}",
            fix="in Label Studio: Export, JSON or JSON-MIN",
            code="annotations_structure",
        )
    found = AnnotationFile(FORMAT)
    for number, task in enumerate(tasks, 1):
        where = f"task {_identity(task) or number}"
        try:
            if not isinstance(task, dict):
                raise Unusable("bad_entry", f"it is {kind_of(task)}, expected an object")
            _check_keys(task)
            if "data" in task:
                _read_task(found, where, task)
            else:
                _read_min(found, where, task, choices)
        except Unusable as problem:
            found.refuse(where, problem)
    return found


def _read_task(found: AnnotationFile, where: str, task: dict[str, Any]) -> None:
    if not isinstance(task["data"], dict):
        raise Unusable("bad_entry", f"its data are {kind_of(task['data'])}, expected an object")
    _check_keys(task["data"])
    video = _video_of(task["data"])
    if task.get("predictions"):
        found.note("predictions of a model are not read")
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        raise Unusable("bad_entry", f"its annotations are {kind_of(annotations)}, expected a list")
    results = []
    for number, annotation in enumerate(annotations, 1):
        place = where if len(annotations) == 1 else f"{where}, annotation {number}"
        if not isinstance(annotation, dict):
            found.refuse(place, Unusable("bad_entry", f"it is {kind_of(annotation)}, expected an object"))
        elif annotation.get("was_cancelled") or annotation.get("skipped"):
            found.note("tasks that were skipped in Label Studio are not read")
        elif not isinstance(annotation.get("result"), list):
            found.refuse(
                place, Unusable("bad_entry", f"its result is {kind_of(annotation.get('result'))}, expected a list")
            )
        else:
            results.append((place, annotation))
    for place, annotation in _chosen(found, results):
        _read_results(found, place, video, annotation["result"])
    if not annotations:
        found.note("tasks without annotations")


def _chosen(found: AnnotationFile, results: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the annotations that count: the ground truth of several, or one that all others repeat."""
    if len(results) < 2:
        return results
    truth = [each for each in results if each[1].get("ground_truth") is True]
    if len(truth) == 1:
        found.note("of several annotations of a task the ground truth is read")
        return truth
    said = [sorted(map(repr, map(_essence, annotation["result"]))) for _, annotation in results]
    if all(each == said[0] for each in said):
        return results[:1]
    raise Unusable(
        "several_annotations",
        f"{len(results)} annotations of it differ: mark one as ground truth in Label Studio, or delete the others",
    )


def _essence(result: object) -> object:
    """Return what a result says, without its identifiers."""
    return (result.get("from_name"), result.get("value")) if isinstance(result, dict) else result


def _read_results(found: AnnotationFile, where: str, video: str, results: list[Any]) -> None:
    named = [each for each in results if isinstance(each, dict) and isinstance(each.get("id"), str)]
    timeline = {each["id"] for each in named if each.get("type") == "timelinelabels"}
    for number, result in enumerate(results, 1):
        place = f"{where}, result {number}"
        try:
            if not isinstance(result, dict):
                raise Unusable("bad_entry", f"it is {kind_of(result)}, expected an object")
            _check_keys(result)
            kind = result.get("type")
            if not isinstance(kind, str):
                raise Unusable("bad_entry", f"its type is {kind_of(kind)}, expected text")
            if kind == "choices" and isinstance(result.get("id"), str) and result["id"] in timeline:
                found.note("choices on a part of the timeline are not read: its label counts")
            else:
                _read_value(found, place, video, kind, result.get("value"))
        except Unusable as problem:
            found.refuse(place, problem)


def _read_value(found: AnnotationFile, where: str, video: str, kind: str, value: object) -> None:
    if kind not in ("timelinelabels", "choices", "labels"):
        found.note(f"results of type {shown(kind)} are no labels of segments")
        return
    if not isinstance(value, dict):
        raise Unusable("bad_entry", f"its value is {kind_of(value)}, expected an object")
    _check_keys(value)
    if kind == "timelinelabels" and "ranges" not in value and "sequence" in value:
        found.note("copies of boxes among the timeline's labels are not read")
        return
    label = _one_label(value.get(kind), kind)
    if kind == "choices":
        found.add(Annotation(where, video, label, None))
    elif kind == "labels":
        found.add(Annotation(where, video, label, read_segment(value.get("start"), value.get("end"))))
    else:
        for span in _ranges(value):
            found.add(Annotation(where, video, label, span, counted_rate=_rate(value), counts_itself=True))


def _one_label(labels: object, key: str) -> str:
    if labels is None:
        raise Unusable("no_label", f"it has no {key}")
    if not isinstance(labels, list):
        raise Unusable("bad_label", f"its {key} are {kind_of(labels)}, expected a list of one label")
    if not labels:
        raise Unusable("no_label", f"its {key} are empty")
    if len(labels) > 1:
        raise Unusable("several_labels", f"it has {len(labels)} labels, and a clip has one: {shown(labels)}")
    return read_label(labels[0])


def _ranges(value: dict[str, Any]) -> Iterator[FrameRange]:
    ranges = value.get("ranges")
    if not isinstance(ranges, list) or not ranges:
        raise Unusable("no_segment", f"its ranges are {kind_of(ranges) if ranges != [] else 'empty'}, expected a list")
    spans = []
    for span in ranges:
        if not isinstance(span, dict):
            raise Unusable("bad_entry", f"a range is {kind_of(span)}, expected an object with start and end")
        _check_keys(span)
        first, last = (read_frame(span.get(key), f"the {key}", least=1) for key in ("start", "end"))
        if last < first:
            raise Unusable("empty_segment", f"it ends at frame {last}, before its start at frame {first}")
        spans.append(FrameRange(first - 1, last))
    yield from spans


def _rate(value: dict[str, Any]) -> float | None:
    """Return the rate that Label Studio counted at, where a result says it."""
    frames, duration = value.get("framesCount"), value.get("duration")
    for number in (frames, duration):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < MAX_TIME_S * 1000:
            return None
    assert isinstance(frames, int | float)
    assert isinstance(duration, int | float)
    return frames / duration


def _read_min(found: AnnotationFile, where: str, record: dict[str, Any], choices: str) -> None:
    """Read a record of JSON-MIN: the task's data, and a key for each control."""
    video = _video_of(record)
    used = False
    for key, value in record.items():
        regions = value if isinstance(value, list) else []
        for number, region in enumerate(regions, 1):
            if isinstance(region, dict) and ("timelinelabels" in region or {"labels", "start"} <= set(region)):
                used = True
                kind = "timelinelabels" if "timelinelabels" in region else "labels"
                place = f"{where}, {shown(key)[1:-1]} {number}"
                try:
                    _read_value(found, place, video, kind, region)
                except Unusable as problem:
                    found.refuse(place, problem)
            elif isinstance(region, dict) and "sequence" in region:
                used = True
                found.note("results of type 'videorectangle' are no labels of segments")
    named = [choices] if choices else [key for key in CHOICE_KEYS if key in record]
    for key in named:
        value = record.get(key)
        if isinstance(value, str):  # one choice; more of them are an object
            used = True
            found.add(Annotation(where, video, read_label(value), None))
        elif isinstance(value, dict):
            used = True
            found.add(Annotation(where, video, _one_label(value.get("choices"), "choices"), None))
    if not used:
        raise Unusable("no_label", _unread(record, video))


def _unread(record: dict[str, Any], video: str) -> str:
    texts = [key for key, value in record.items() if isinstance(value, str) and value != video and key not in MIN_KEYS]
    if not texts:
        return "it has no label of a segment or of the whole video"
    return f"it has no timeline labels; if {shown(' or '.join(texts))} is the label, give --choices {texts[0][:50]}"


def _video_of(data: dict[str, Any]) -> str:
    """Return the video of a task's data: under the usual key, or the only text that ends like a video's name."""
    named = [data[key] for key in VIDEO_KEYS if isinstance(data.get(key), str) and looks_like_video(data[key])]
    others = [value for value in data.values() if isinstance(value, str) and looks_like_video(value)]
    for candidates in (named, others):
        if len(set(candidates)) == 1:
            return read_video_name(candidates[0])
        if candidates:
            raise Unusable("no_video_name", f"its data name {len(set(candidates))} videos: {shown(candidates)}")
    return read_video_name(next((data[key] for key in VIDEO_KEYS if data.get(key) is not None), None))


def _identity(task: object) -> str:
    number = task.get("id") if isinstance(task, dict) else None
    return shown(number) if isinstance(number, int) and not isinstance(number, bool) else ""


def _check_keys(entry: dict[str, Any]) -> None:
    if isinstance(entry, RepeatedKeys):
        raise Unusable("repeated_key", f"it has the key {shown(entry.repeated[0])} twice")
