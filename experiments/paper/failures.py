"""Where the model is wrong: the confusion matrix, and each wrong clip with keyframes, caption and classes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, StorageError
from ..report.html import count, definitions, node
from .features import table_name
from .jobs import Job, Results, RunResult
from .settings import Context
from .splits import split_data
from .tables import Row, TableResult

MOST_SHOWN = 40


@dataclass(frozen=True)
class WrongClip:
    path: str  # relative to the video folder
    caption: str
    truth: str
    predicted: str
    times_s: tuple[float, ...]  # of the keyframes
    frames: tuple[bytes, ...] = ()  # JPEG


@dataclass(frozen=True, eq=False)
class Failures:
    table: TableResult  # the pairs most often confused
    confusion: npt.NDArray[np.int64]  # [classes, classes], truth down
    labels: tuple[str, ...]
    wrong: tuple[WrongClip, ...]  # the first of them, spread over the pairs
    total: int  # wrong clips in all


def failures_job(context: Context) -> Job:
    """Seed 0 of Table 2's run on the main extractor."""
    return context.job()


def find_failures(context: Context, results: Results) -> Failures:
    """Raises DataError when the run could not be made."""
    result = results[failures_job(context)]
    if not isinstance(result, RunResult):
        raise DataError(f"the run behind the failures could not be made: {result.message}", code=result.code)
    data = context.data
    split = split_data(data, context.settings.split, dataset=context.settings.dataset, videos=context.settings.videos)
    truth, predicted = data.y[split.test], np.array(result.predictions)
    confusion = np.zeros((len(data.labels),) * 2, np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    wrong = np.flatnonzero(truth != predicted)
    off = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-off, axis=None, kind="stable")[:20]
    pairs = [divmod(int(place), len(data.labels)) for place in order]
    rows = tuple(
        Row(
            f"{data.labels[a]} taken for {data.labels[b]}", None, None, None, "counted",
            extra={"clips": int(off[a, b]), "of": int(confusion[a].sum())},
        )
        for a, b in pairs
        if off[a, b]
    )  # fmt: skip
    notes = (f"{table_name(data.main)}, seed 0: {len(wrong)} of {len(truth)} test clips are wrong.",)
    table = TableResult("failures", "Failures: classes taken for each other", rows, notes, ("clips", "of"), "clips")
    # A clip of each pair before a second one of any.
    seen: dict[tuple[int, int], int] = {}
    ranked = []
    for row in wrong:
        pair = (int(truth[row]), int(predicted[row]))
        seen[pair] = seen.get(pair, 0) + 1
        ranked.append((seen[pair], int(row)))
    shown = [_wrong_clip(context, int(split.test[row]), int(predicted[row])) for _, row in sorted(ranked)[:MOST_SHOWN]]
    return Failures(table, confusion, data.labels, tuple(shown), len(wrong))


def _wrong_clip(context: Context, row: int, predicted: int) -> WrongClip:
    data = context.data
    note = data.clips[row]
    said = data.noted.get(note.sha256, note)
    frames = _keyframes(context.settings.videos, note.path, said.times_s)
    return WrongClip(note.path, said.caption, data.labels[data.y[row]], data.labels[predicted], said.times_s, frames)


def _keyframes(videos: Path | None, name: str, times_s: Sequence[float]) -> tuple[bytes, ...]:
    """The stored keyframes as small JPEGs; none without the videos, or of a clip that cannot be read."""
    if videos is None or not times_s or not (videos / name).is_file():
        return ()
    from ..keyframe_strip import frames_at

    try:
        return frames_at(videos / name, times_s)
    except (DataError, StorageError):
        return ()


def failure_sections(failures: Failures, picture: Element) -> Iterator[Element]:
    """The page's parts: the matrix, then a part per wrong clip."""
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
    images = [
        node("img", src=f"data:image/jpeg;base64,{b64encode(frame).decode()}", alt=f"keyframe {place}")
        for place, frame in enumerate(clip.frames, start=1)
    ]
    facts = [("Truth", clip.truth), ("Predicted", clip.predicted), ("Caption", clip.caption or "(none stored)")]
    film = node("div", *images, cls="film") if images else node("p", "no pictures: give --videos DIR", cls="note")
    return node("div", node("h3", clip.path), film, definitions(facts), cls="failure")
