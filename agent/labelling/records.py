"""Records of the page's HTTP interface: the state that it shows, and the changes that it asks for."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ...runtime.clip_records import Segment
from ..extraction.labels_table import LabelRow

Tab = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]  # an open page, kept over a reload
Id = Annotated[str, msgspec.Meta(max_length=64)]
Name = Annotated[str, msgspec.Meta(max_length=1000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e7)]
Changes = Annotated[list["ChangeRecord"], msgspec.Meta(min_length=1, max_length=1000)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strict and immutable record: an unknown key is an error."""


class SpanRecord(_Record, frozen=True):
    """Start and end in seconds from the video's first frame; both null: the whole video."""

    start_s: Seconds | None = None
    end_s: Seconds | None = None


class RowRecord(_Record, frozen=True):
    """A row of labels.csv."""

    path: Annotated[str, msgspec.Meta(max_length=4096)]
    label: Name | None = None
    start_s: Seconds | None = None
    end_s: Seconds | None = None
    group: Name = ""
    person: Name = ""
    camera: Name = ""


class ChangeRecord(_Record, frozen=True):
    """A change of one row.

    ``put``: the row that ``replaces`` names is rewritten, or a new one added where it is null. ``remove``: the row of
    start and end is removed. ``expected``: the row as the page showed it; without one any is replaced or removed.
    ``group``, ``person`` and ``camera`` stay as they are where they are null.
    """

    op: Literal["put", "remove"]
    video: Id
    label: Name | None = None
    start_s: Seconds | None = None
    end_s: Seconds | None = None
    replaces: SpanRecord | None = None
    expected: RowRecord | None = None
    group: Name | None = None
    person: Name | None = None
    camera: Name | None = None


class ChangesRequest(_Record, frozen=True):
    """Body of ``POST /api/changes``: one step of the tab's undo."""

    tab: Tab
    changes: Changes


class TabRequest(_Record, frozen=True):
    """Body of ``POST /api/undo`` and ``POST /api/redo``."""

    tab: Tab


class AliasRequest(_Record, frozen=True, rename={"as_": "as"}):
    """Body of ``POST /api/alias``."""

    label: Name
    as_: Name


class SuggestionsRequest(_Record, frozen=True):
    """Body of ``POST /api/suggestions``: start or stop them."""

    on: bool


class ConflictRecord(_Record, frozen=True):
    """A change that was not made. ``code``: missing, changed, exists or invalid; ``row``: what is there now."""

    video: str
    code: str
    message: str
    row: RowRecord | None


class ChangesAnswer(_Record, frozen=True):
    """Answer of ``POST /api/changes``, ``/api/undo`` and ``/api/redo``."""

    revision: str
    undo: int  # steps of this tab that can be undone
    redo: int
    applied: int  # changes that are in the file now
    conflicts: list[ConflictRecord]
    videos: list[VideoRecord]  # of the changes, as they are now


class SuggestionRecord(_Record, frozen=True):
    """The model's label for a whole video."""

    label: str
    probability: float


class VideoRecord(_Record, frozen=True):
    """A video of the folder, or one that labels.csv names and that is not there."""

    id: str
    name: str
    playable: bool  # by its name: a browser is likely to play the file itself
    duration_s: float | None  # None: not known yet
    size: int  # bytes
    rows: list[RowRecord]
    suggestion: SuggestionRecord | None
    problem: str | None


class ClassRecord(_Record, frozen=True):
    """A label of the vocabulary."""

    label: str
    in_run: bool
    clips: int  # rows that have it


class ProblemRecord(_Record, frozen=True):
    """A line of labels.csv that cannot be used; line 0: the file or folder as a whole."""

    line: int
    reason: str


class StateRecord(_Record, frozen=True):
    """Answer of ``GET /api/state``."""

    proof_key: str  # that the program proves itself with, after a lost connection
    revision: str
    folder: str
    videos: list[VideoRecord]
    vocabulary: list[ClassRecord]
    run: bool  # the run's classes are known
    aliases: dict[str, str]
    problems: list[ProblemRecord]
    undo: int
    redo: int
    model: bool  # there are suggestions
    suggesting: bool  # they are being computed
    extracting: bool | None  # an extraction runs on this folder's store; None: the store is not known
    writable: bool  # labels.csv can be saved


def span_of(segment: Segment | None) -> tuple[float | None, float | None]:
    """Return start and end in seconds; None twice for the whole video."""
    return (None, None) if segment is None else (segment.start_s, segment.end_s)


def row_record(row: LabelRow) -> RowRecord:
    """Return a row as the page has it."""
    start, end = span_of(row.segment)
    return RowRecord(row.path, row.label, start, end, row.group, row.person, row.camera)
