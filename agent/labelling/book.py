"""The labels of one folder, for every tab: state, changes and undo over ``labels.csv``.

``labels.csv`` is the only place where labels are kept: every change is in the file before it is answered, and the file
is read again whenever another program has written it. Many threads may call a LabelBook.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...base.errors import FlamestError
from ...base.files import printable_path
from ...runtime.clip_records import Segment
from ..annotations.labels_file import (
    AppliedChange,
    AppliedChanges,
    Change,
    ChangeConflict,
    LabelsFile,
    PutRow,
    RemoveRow,
    RowKey,
    clean_path,
    same_row,
)
from ..extraction.groups import DEFAULT_RULES, ClipRules
from ..extraction.labels_table import LABELS_FILE, LabelRow
from .access import Refused
from .folder_videos import FolderVideo, FolderVideos
from .records import (
    ChangeRecord,
    ChangesAnswer,
    ConflictRecord,
    ProblemRecord,
    RowRecord,
    SuggestionRecord,
    VideoRecord,
    row_record,
)
from .undo import Step, UndoSteps, inverse

# Letters that turn the reading order of a whole line, so that a label shows as another one (Unicode TR 36, 3.1).
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")


class LabelBook:
    """Labels and videos of ``folder``."""

    def __init__(self, folder: Path, rules: ClipRules = DEFAULT_RULES) -> None:
        self.folder = folder
        self.videos_of = FolderVideos(folder)
        self.durations: dict[str, float] = {}  # by identifier, seconds, of videos that were opened
        self.suggestions: dict[str, SuggestionRecord] = {}  # by identifier
        self._rules = rules
        self._lock = threading.RLock()
        self._undo = UndoSteps()
        self._file: LabelsFile | None = None
        self._problem: FlamestError | None = None  # why labels.csv cannot be read
        self._videos = self.videos_of.scan()
        self._rows: dict[str, list[LabelRow]] = {}
        self.saves = 0
        self._read()

    @property
    def revision(self) -> str:
        """Hash of the content of labels.csv as it was read last; ``damaged`` where it is no table."""
        return self._file.revision if self._file is not None else "damaged"

    @property
    def writable(self) -> bool:
        """True when labels.csv is a table, and this user may write to its folder."""
        return self._file is not None and os.access(self.folder, os.W_OK | os.X_OK)

    @property
    def table_path(self) -> Path:
        return self.folder / LABELS_FILE

    def refresh(self) -> bool:
        """Read labels.csv again if another program has written it. Returns True when it says something else."""
        with self._lock:
            before = self.revision, str(self._problem)
            self._read()
            return (self.revision, str(self._problem)) != before

    def rescan(self) -> bool:
        """Search the folder again. Returns True when a video came, went or was written to."""
        found = self.videos_of.scan()
        with self._lock:
            changed = found != self._videos
            self._videos = found
            if changed:
                self._read(searched=True)
            return changed

    def video(self, identifier: str) -> FolderVideo:
        """Return the video with this identifier. Raises Refused where there is none."""
        with self._lock:
            found = self._videos.get(identifier)
        if found is None:
            raise Refused(404, "there is no such video", fix="reload the page", code="no_video")
        return found

    def videos(self) -> list[VideoRecord]:
        """Return every video with its rows, in the order of the names."""
        with self._lock:
            return [self._record(video) for video in sorted(self._all(), key=lambda video: video.shown)]

    def problems(self) -> list[ProblemRecord]:
        """Return the lines of labels.csv that cannot be used; line 0 for the file as a whole."""
        with self._lock:
            if self._problem is not None:
                return [ProblemRecord(0, self._problem.with_fix)]
            bad = self._file.bad if self._file is not None else ()
            return [ProblemRecord(row.line, row.reason) for row in bad]

    def clips_by_label(self) -> Counter[str]:
        """Return how many rows have each label."""
        with self._lock:
            rows = self._file.rows if self._file is not None else ()
            return Counter(row.label for row in rows if row.label)

    def undo_counts(self, tab: str) -> tuple[int, int]:
        """Return how many steps the tab can undo and redo."""
        with self._lock:
            return self._undo.counts(tab)

    def unlabelled(self) -> list[FolderVideo]:
        """Return the usable videos that have no label and no segment."""
        with self._lock:
            return [
                video
                for video in self._videos.values()
                if not video.problem
                and all(row.label is None and row.segment is None for row in self._rows.get(video.id, ()))
            ]

    def save(self, tab: str, changes: Sequence[ChangeRecord]) -> ChangesAnswer:
        """Make the changes; those that meet another row than the tab saw are conflicts.

        Raises Refused for a change that cannot be one, and as ``LabelsFile.apply``: nothing is changed then.
        """
        with self._lock:
            wanted = [self._change(change) for change in changes]
            done = self._apply(wanted)
            step = _real(done.applied)
            self._undo.of(tab).note(step)
            return self._answer(tab, done, [change.video for change in changes])

    def undo(self, tab: str) -> ChangesAnswer:
        """Undo the last step of the tab, except rows that someone has changed since: those are conflicts."""
        return self._replay(tab, back=True)

    def redo(self, tab: str) -> ChangesAnswer:
        """Make the step again that the tab undid last."""
        return self._replay(tab, back=False)

    def _replay(self, tab: str, *, back: bool) -> ChangesAnswer:
        with self._lock:
            steps = self._undo.of(tab)
            source, target = (steps.undo, steps.redo) if back else (steps.redo, steps.undo)
            if not source:
                return self._answer(tab, AppliedChanges(self.revision, (), (), written=False), [])
            changes = inverse(source[-1])
            done = self._apply(changes)
            source.pop()  # also after a conflict: the steps before it can be undone still
            if step := _real(done.applied):
                target.append(step)
            paths = [clean_path(_key(change)[0]) for change in changes]
            return self._answer(tab, done, [self.videos_of.id_of(path) for path in paths])

    def _apply(self, changes: Iterable[Change]) -> AppliedChanges:
        if self._file is None:
            self._read()
        if self._file is None:
            assert self._problem is not None
            raise self._problem
        try:
            done = self._file.apply(changes)
        finally:
            self._read()
        self.saves += done.written
        return done

    def _read(self, *, searched: bool = False) -> None:
        """Read labels.csv where it was written to. ``searched``: the folder is another one than it was."""
        try:
            if self._file is None:
                self._file = LabelsFile.open(self.folder, rules=self._rules)
            elif searched or self._file.revision or os.path.lexists(self.table_path):
                self._file.reload()  # without a labels.csv this searches the folder
            self._problem = None
        except FlamestError as error:
            self._file, self._problem = None, error
        self._arrange()

    def _arrange(self) -> None:
        self._rows = {}
        for row in self._file.rows if self._file is not None else ():
            self._rows.setdefault(self.videos_of.id_of(clean_path(row.path)), []).append(row)

    def _all(self) -> list[FolderVideo]:
        """Return the videos of the folder, and those that labels.csv names besides."""
        absent = [rows[0] for identifier, rows in self._rows.items() if identifier not in self._videos]
        return [*self._videos.values(), *(self.videos_of.missing(clean_path(row.path)) for row in absent)]

    def _record(self, video: FolderVideo) -> VideoRecord:
        rows = [row_record(row) for row in self._rows.get(video.id, ())]
        return VideoRecord(
            id=video.id,
            name=video.shown,
            playable=video.playable,
            duration_s=self.durations.get(video.id),
            size=video.size,
            rows=rows,
            suggestion=self.suggestions.get(video.id),
            problem=video.problem or None,
        )

    def _path(self, identifier: str) -> str:
        """Return the path of a video for labels.csv. Raises Refused for one that cannot have a row."""
        if identifier in self._videos:
            video = self._videos[identifier]
            if video.problem and not self._rows.get(identifier):
                raise Refused(409, f"this video cannot be labelled: {video.problem}", fix="fix the file", code="video")
            return video.path
        if identifier in self._rows:
            return self._rows[identifier][0].path
        raise Refused(404, "there is no such video", fix="reload the page", code="no_video")

    def _change(self, change: ChangeRecord) -> Change:
        """Return a change of the page as one of labels.csv. Raises Refused for one that cannot be."""
        path = self._path(change.video)
        expected = _expected(change.expected, path)
        if change.op == "remove":
            return RemoveRow(path, _segment(change.start_s, change.end_s), expected)
        segment = _segment(change.start_s, change.end_s)
        replaces: RowKey | None = None
        before: LabelRow | None = expected
        if change.replaces is not None:
            replaces = path, _segment(change.replaces.start_s, change.replaces.end_s)
            before = expected or next(
                (row for row in self._rows.get(change.video, ()) if row.segment == replaces[1]), None
            )
        row = LabelRow(
            line=0,
            path=before.path if before is not None else path,
            label=_name("label", change.label, None) or None,
            segment=segment,
            group=_name("group", change.group, before.group if before else "") or "",
            person=_name("person", change.person, before.person if before else "") or "",
            camera=_name("camera", change.camera, before.camera if before else "") or "",
        )
        return PutRow(row, replaces, expected if replaces is not None else None)

    def _answer(self, tab: str, done: AppliedChanges, videos: Sequence[str]) -> ChangesAnswer:
        undo, redo = self._undo.counts(tab)
        touched = set(videos)
        return ChangesAnswer(
            revision=self.revision,
            undo=undo,
            redo=redo,
            applied=len(done.applied),
            conflicts=[self._conflict(conflict) for conflict in done.conflicts],
            videos=[self._record(video) for video in self._all() if video.id in touched],
        )

    def _conflict(self, conflict: ChangeConflict) -> ConflictRecord:
        identifier = self.videos_of.id_of(clean_path(_key(conflict.change)[0]))
        row = row_record(conflict.found) if conflict.found else None
        return ConflictRecord(identifier, conflict.code, conflict.reason, row)

    def place(self) -> str:
        """Return where the labels are, for a person."""
        return printable_path(self.table_path)


def _real(applied: Iterable[AppliedChange]) -> Step:
    """Return the changes that changed something."""
    return tuple(change for change in applied if not same_row(change.before, change.after))


def _key(change: Change) -> RowKey:
    return (change.row.path, change.row.segment) if isinstance(change, PutRow) else (change.path, change.segment)


def _segment(start_s: float | None, end_s: float | None) -> Segment | None:
    """Return the segment; None for the whole video. Raises Refused for one that cannot be."""
    if start_s is None and end_s is None:
        return None
    if start_s is not None and end_s is not None:
        segment = Segment.of_seconds(start_s, end_s)
        if segment.start_us < segment.end_us:
            return segment
    raise Refused(
        400, "a segment needs a start, and an end after it", fix="set the end after the start", code="segment"
    )


def _expected(row: RowRecord | None, path: str) -> LabelRow | None:
    """Return the row that the page showed. Raises Refused where it is another video's."""
    if row is None:
        return None
    if clean_path(row.path) != clean_path(path):
        raise Refused(400, "the expected row is another video's", fix="reload the page", code="page_request")
    segment = _segment(row.start_s, row.end_s)
    return LabelRow(0, row.path, row.label or None, segment, row.group, row.person, row.camera)


def _name(what: str, text: str | None, unchanged: str | None) -> str | None:
    """Return a name without blanks around it. Raises Refused for one with letters that hide what it says."""
    if text is None:
        return unchanged
    if any(letter in TURNING or (letter < " ") or "\x7f" <= letter < "\xa0" for letter in text):
        raise Refused(
            400,
            f"the {what} holds control characters, or letters that turn the reading order",
            fix=f"type the {what} without them",
            code="name",
        )
    return text.strip()
