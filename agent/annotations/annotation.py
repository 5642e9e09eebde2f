"""Annotations as tools write them, before their videos are found and their frames are times."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from ...base.errors import DataError
from ...runtime.clip_records import Segment
from ..extraction.labels_table import MAX_NAME, MAX_TIME_S, is_text
from ..extraction.name_letters import name_problem

MAX_ANNOTATIONS = 1_000_000  # in one file
MAX_PROBLEMS = 100_000
MAX_NOTES = 200  # different ones
MAX_FRAME = 1 << 31
MAX_WHERE = 200  # characters of a name in a message


class FrameRange(NamedTuple):
    """Frames ``first`` until before ``end``; the video's first frame is 0."""

    first: int
    end: int


@dataclass(frozen=True)
class Annotation:
    """A labelled part of a video, as a file of a tool has it."""

    where: str  # in the file: "line 7", "task 12"
    video: str  # as the file names it
    label: str
    span: Segment | FrameRange | None  # None: the whole video
    person: str = ""
    camera: str = ""
    group: str = ""
    counted_rate: float | None = None  # frames per second that the file says the tool counted at
    counts_itself: bool = False  # the tool counts frames at a rate of its own, whatever the video has
    together: bool = False  # the video's rows must be held out together, whatever persons they have


class EntryProblem(NamedTuple):
    """A part of a file that is not used, and why: ``code`` is a word, ``reason`` a sentence."""

    where: str
    code: str
    reason: str


class Unusable(Exception):
    """The entry being read cannot be used."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass
class AnnotationFile:
    """Content of an annotation file."""

    format: str  # activitynet, segments, cvat or label-studio
    annotations: list[Annotation] = field(default_factory=list)
    problems: list[EntryProblem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)  # sentences on what was left out or how it was read

    def add(self, annotation: Annotation) -> None:
        """Append an annotation. Raises DataError ``too_many`` when there are too many in one file."""
        if len(self.annotations) >= MAX_ANNOTATIONS:
            raise DataError(
                f"more than {MAX_ANNOTATIONS:,} annotations in one file", fix="split the file", code="too_many"
            )
        self.annotations.append(annotation)

    def refuse(self, where: str, problem: Unusable) -> None:
        """Note that an entry is not used. Raises DataError ``too_many`` when hardly any can be."""
        if len(self.problems) >= MAX_PROBLEMS:
            raise DataError(
                f"more than {MAX_PROBLEMS:,} entries of the file cannot be used, the first: {self.problems[0].reason}",
                fix="check that the file is of this format; --format names another one",
                code="too_many",
            )
        self.problems.append(EntryProblem(where, problem.code, problem.reason))

    def note(self, sentence: str) -> None:
        """Count a sentence on what was left out, or how something was read."""
        if sentence in self.notes or len(self.notes) < MAX_NOTES:
            self.notes[sentence] += 1


def read_label(value: object, *, what: str = "the label") -> str:
    """Return a label or name of an entry, checked. Raises Unusable ``no_label`` or ``bad_label``."""
    if value is None or value == "":
        raise Unusable("no_label", f"{what} is missing")
    if not isinstance(value, str):
        raise Unusable("bad_label", f"{what} is {kind_of(value)}, expected text")
    text = value.strip()
    if not text:
        raise Unusable("no_label", f"{what} is empty")
    if problem := name_problem(text):
        raise Unusable("bad_label", f"{what} {problem}")
    if len(text) > MAX_NAME:
        raise Unusable("bad_label", f"{what} is not a name: expected at most {MAX_NAME} characters")
    return text


def read_name(value: object, what: str) -> str:
    """Return an optional name, empty where there is none. Raises Unusable ``bad_label``."""
    return "" if value is None or (isinstance(value, str) and not value.strip()) else read_label(value, what=what)


def read_video_name(value: object) -> str:
    """Return the name that an entry gives its video. Raises Unusable ``no_video_name`` or ``bad_video_name``."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Unusable("no_video_name", "it names no video")
    if not isinstance(value, str) or len(value) > 4096 or not is_text(value) or not _is_unicode(value):
        raise Unusable("bad_video_name", "the video's name is not text of at most 4096 characters, none of control")
    return value.strip()


def read_segment(start: object, end: object) -> Segment:
    """Return a segment of two numbers of seconds. Raises Unusable ``bad_time`` or ``empty_segment``."""
    times = [_microseconds(value, word) for value, word in ((start, "start"), (end, "end"))]
    if times[1] <= times[0]:
        raise Unusable("empty_segment", f"it ends at {end} s, not after its start at {start} s")
    return Segment(*times)


def read_frame(value: object, what: str, *, least: int = 0) -> int:
    """Return the number of a frame. Raises Unusable ``bad_frame``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float) and value.is_integer():
        value, whole = int(value), True
    if not whole:
        raise Unusable("bad_frame", f"{what} is {shown(value)}, expected the number of a frame")
    assert isinstance(value, int)
    if not least <= value <= MAX_FRAME:
        raise Unusable("bad_frame", f"{what} is {shown(value)}, expected a frame from {least} on")
    return value


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words."""
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "true or false"),
        (dict, "an object"),
        (list, "a list"),
        (str, "text"),
        (int, "a number"),
        (float, "a number"),
    )
    return next((words for kind, words in kinds if isinstance(value, kind)), "null")


def shown(value: object) -> str:
    """Return a value for a message: short."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        text = "a huge number"
    return text if len(text) <= MAX_WHERE else text[:MAX_WHERE] + "…"


def _microseconds(value: object, word: str) -> int:
    if value is None:
        raise Unusable("bad_time", f"the {word} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable("bad_time", f"the {word} is {shown(value)}, expected a number of seconds")
    if not 0 <= value <= MAX_TIME_S:  # also false for a NaN
        raise Unusable("bad_time", f"the {word} is {shown(value)}, expected seconds from 0 to {MAX_TIME_S:,}")
    return round(value * 1e6)


def _is_unicode(text: str) -> bool:
    """True unless the text holds half a surrogate pair, which no file can."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
