"""ActivityNet's JSON: read, and written.

    {"version": "1.3", "database": {"VIDEO": {"subset": "training", "duration": 82.7, "annotations": [
        {"label": "fall", "segment": [12.5, 17.0]}]}}}

``segment`` is [start, end] in seconds. The evaluation code of the data set reads ``database``, ``subset``,
``annotations``, ``label`` and ``segment``, and needs the keys ``version`` and ``taxonomy``:
https://github.com/activitynet/ActivityNet/blob/master/Evaluation/eval_detection.py
Its keys are YouTube's identifiers, of files called v_IDENTIFIER:
https://github.com/activitynet/ActivityNet/blob/master/Crawler/run_crosscheck.py

In a file that was written here an annotation may also have ``whole``, ``person``, ``camera`` and ``group``: they give
the same rows again, and other readers of the format ignore them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...base.errors import DataError, printable
from ..extraction.labels_table import LabelRow
from .annotation import (
    MAX_WHERE,
    Annotation,
    AnnotationFile,
    Unusable,
    kind_of,
    read_label,
    read_name,
    read_segment,
    read_video_name,
)
from .json_text import RepeatedKeys

FORMAT = "activitynet"


def read_activitynet(document: object, name: str) -> AnnotationFile:
    """Read a decoded document. Raises DataError ``annotations_structure`` where it is none; ``name`` is the file's."""
    found = AnnotationFile(FORMAT)
    for video, entry in _database(document, name).items():
        where = f"video {printable(video)[:MAX_WHERE]}"
        try:
            _read_video(found, where, read_video_name(video), entry)
        except Unusable as problem:
            found.refuse(where, problem)
    return found


def _database(document: object, name: str) -> dict[str, Any]:
    if not isinstance(document, dict) or not isinstance(document.get("database"), dict):
        results = isinstance(document, dict) and "results" in document
        problem = "holds predictions (results), not labels" if results else "has no object 'database'"
        raise DataError(
            f"{name} {problem}",
            fix='expected {"database": {VIDEO: {"annotations": [{"label": …, "segment": [start, end]}]}}}',
            code="annotations_structure",
        )
    database: dict[str, Any] = document["database"]
    twice = [document, database]
    repeated = [key for each in twice if isinstance(each, RepeatedKeys) for key in each.repeated]
    if repeated:
        raise DataError(
            f"{name} has the key {printable(repeated[0])[:MAX_WHERE]} twice: which of the two counts is unknown",
            fix="merge the two entries into one",
            code="repeated_key",
        )
    return database


def _read_video(found: AnnotationFile, where: str, video: str, entry: object) -> None:
    if not isinstance(entry, dict):
        raise Unusable("bad_entry", f"it is {kind_of(entry)}, expected an object with annotations")
    _check_keys(entry)
    annotations = entry.get("annotations")
    if annotations is None:
        raise Unusable("bad_entry", "it has no list of annotations")
    if not isinstance(annotations, list):
        raise Unusable("bad_entry", f"its annotations are {kind_of(annotations)}, expected a list")
    if not annotations:
        found.note("videos without annotations, as in a test set")
    for number, annotation in enumerate(annotations, 1):
        place = f"{where}, annotation {number}"
        try:
            found.add(_read_annotation(place, video, annotation, _duration(entry)))
        except Unusable as problem:
            found.refuse(place, problem)


def _read_annotation(where: str, video: str, entry: object, duration: float | None) -> Annotation:
    if not isinstance(entry, dict):
        raise Unusable("bad_entry", f"it is {kind_of(entry)}, expected an object with label and segment")
    _check_keys(entry)
    label = read_label(entry.get("label"))
    names: dict[str, Any] = {key: read_name(entry.get(key), f"the {key}") for key in ("person", "camera", "group")}
    if entry.get("whole") is True:
        return Annotation(where, video, label, None, **names)
    span = entry.get("segment")
    if span is None:
        raise Unusable("no_segment", "it has no segment")
    if not isinstance(span, list) or len(span) != 2:
        raise Unusable("bad_time", "its segment is not a list of two numbers, [start, end]")
    segment = read_segment(*span)
    if duration is not None and segment.start_s >= duration:
        raise Unusable("after_video", f"it starts at {span[0]} s, and the video lasts {duration} s")
    return Annotation(where, video, label, segment, **names)


def _duration(entry: dict[str, Any]) -> float | None:
    """Return the stated duration; None where it is none: it is not needed."""
    value = entry.get("duration")
    usable = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return value if usable else None


def _check_keys(entry: dict[str, Any]) -> None:
    if isinstance(entry, RepeatedKeys):
        raise Unusable("repeated_key", f"it has the key {entry.repeated[0]!r} twice")


def write_activitynet(rows: Iterable[LabelRow], durations_s: Mapping[str, float], *, subset: str = "training") -> bytes:
    """Return labelled rows as a document; ``durations_s``: of the videos where they are known, by path.

    A whole file is the segment from 0 to its duration, or to 0 where that is unknown, with ``"whole": true``.
    """
    database: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = {"duration": durations_s[row.path]} if row.path in durations_s else {}
        entry = database.setdefault(row.path, {"subset": subset, **known, "annotations": []})
        span = row.segment
        annotation: dict[str, Any] = {
            "label": row.label,
            "segment": [span.start_s, span.end_s] if span else [0.0, durations_s.get(row.path, 0.0)],
        }
        if span is None:
            annotation["whole"] = True
        annotation |= {
            key: value for key, value in (("person", row.person), ("camera", row.camera), ("group", row.group)) if value
        }
        entry["annotations"].append(annotation)
    labels = sorted({annotation["label"] for entry in database.values() for annotation in entry["annotations"]})
    taxonomy = [{"nodeId": 0, "nodeName": "Root", "parentId": None, "parentName": None}] + [
        {"nodeId": number, "nodeName": label, "parentId": 0, "parentName": "Root"}
        for number, label in enumerate(labels, 1)
    ]
    document = {"version": "flamest 1", "taxonomy": taxonomy, "database": database}
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()
