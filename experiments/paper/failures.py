"""Errors of the model: the confusion matrix, and each misclassified clip with keyframes, caption and classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt

from ...agent.extraction.store import ClipNote
from ...base.errors import DataError, StorageError
from ...base.html import count, definitions, image, node
from .features import table_name
from .inputs import ExperimentInputs
from .jobs import Job, Results, RunResult
from .tables import Row, TableResult

MAX_SHOWN = 40


@dataclass(frozen=True)
class WrongClip:
    """A misclassified test clip."""

    path: str  # relative to the video folder; of a segment PATH#t=12.5,17
    caption: str
    truth: str
    predicted: str
    times_s: tuple[float, ...]  # of the keyframes
    frames: tuple[bytes, ...] = ()  # JPEG


@dataclass(frozen=True, eq=False)
class Failures:
    """Confused classes and misclassified clips of one run."""

    table: TableResult  # the pairs most often confused
    confusion: npt.NDArray[np.int64]  # [classes, classes], truth down
    labels: tuple[str, ...]
    wrong: tuple[WrongClip, ...]  # the first of them, spread over the pairs
    total: int  # wrong clips in all


def failures_job(inputs: ExperimentInputs) -> Job:
    """Table 2's run on the main extractor, with seed 0."""
    return inputs.job()


def find_failures(inputs: ExperimentInputs, results: Results) -> Failures:
    """Confusion matrix and wrong clips of the run. Raises DataError when the run failed."""
    result = results[failures_job(inputs)]
    if not isinstance(result, RunResult):
        raise DataError(
            f"the run whose errors are shown has failed: {result.message}",
            fix="run the experiment with other settings: this training cannot succeed",
            code=result.code,
        )
    data = inputs.data
    split = inputs.split()
    truth, predicted = data.y[split.test], np.array(result.predictions)
    confusion = np.zeros((len(data.labels),) * 2, np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    wrong = np.flatnonzero(truth != predicted)
    off = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-off, axis=None, kind="stable")[:20]
    pairs = [divmod(int(place), len(data.labels)) for place in order]
    rows = tuple(
        Row(
            f"{data.labels[a]} predicted as {data.labels[b]}", None, None, None, "counted",
            extra={"clips": int(off[a, b]), "of": int(confusion[a].sum())},
        )
        for a, b in pairs
        if off[a, b]
    )  # fmt: skip
    notes = (f"{table_name(data.main)}, seed 0: {len(wrong)} of {len(truth)} test clips are misclassified.",)
    table = TableResult("failures", "Failures: classes confused with each other", rows, notes, ("clips", "of"), "clips")
    # One clip of each pair comes before the second one of any pair.
    seen: dict[tuple[int, int], int] = {}
    ranked = []
    for row in wrong:
        pair = (int(truth[row]), int(predicted[row]))
        seen[pair] = seen.get(pair, 0) + 1
        ranked.append((seen[pair], int(row)))
    shown = [_wrong_clip(inputs, int(split.test[row]), int(predicted[row])) for _, row in sorted(ranked)[:MAX_SHOWN]]
    return Failures(table, confusion, data.labels, tuple(shown), len(wrong))


def _wrong_clip(inputs: ExperimentInputs, row: int, predicted: int) -> WrongClip:
    data = inputs.data
    note = data.clips[row]
    captioned = data.noted.get(note.sha256, note)
    frames = _keyframes(inputs.settings.videos, note, captioned.times_s)
    return WrongClip(
        note.path, captioned.caption, data.labels[data.y[row]], data.labels[predicted], captioned.times_s, frames
    )


def _keyframes(videos: Path | None, note: ClipNote, times_s: Sequence[float]) -> tuple[bytes, ...]:
    """The stored keyframes as small JPEGs; none without the videos or when the clip cannot be read."""
    if videos is None or not times_s or not (videos / note.file).is_file():
        return ()
    from ...runtime.video.pictures import frames_at

    try:
        return frames_at(videos / note.file, times_s, segment=note.segment)
    except (DataError, StorageError):
        return ()


def failure_sections(failures: Failures, picture: Element) -> Iterator[Element]:
    """Sections of the page: the matrix, then the wrong clips."""
    yield node(
        "section",
        node("h2", "Confusion matrix"),
        node("p", *failures.table.notes, cls="note"),
        picture,
    )
    yield node(
        "section",
        node("h2", f"{count(len(failures.wrong), 'wrong clip')} of {failures.total}"),
        *(_clip_part(clip) for clip in failures.wrong),
    )


def _clip_part(clip: WrongClip) -> Element:
    total = len(clip.frames)
    images = [image(frame, f"keyframe {place} of {total}") for place, frame in enumerate(clip.frames, start=1)]
    facts = [("Truth", clip.truth), ("Predicted", clip.predicted), ("Caption", clip.caption or "(none stored)")]
    strip = node("div", *images, cls="frames") if images else node("p", "no pictures: give --videos DIR", cls="note")
    return node("div", node("h3", clip.path), strip, definitions(facts), cls="failure")
