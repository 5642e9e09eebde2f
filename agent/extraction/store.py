"""The feature store: the features of a silo's clips, in one SQLite file.

SQLite comes from apsw (the standard library's may be a version with a fault in its write-ahead
log). One process writes at a time, others may read meanwhile. Every clip is one transaction with
synchronous=FULL, so a power cut costs at most the clip in progress. All of it can be extracted again from
the clips; labels and groups come from the folder at each extraction.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ...base.errors import DataError, FlamestError, StorageError
from ...base.files import FileLock, printable_path, storage_code
from ...base.sqlite import damaged_error, open_for_reading, open_for_writing, translated_errors
from ...runtime.clip_records import Clip, ClipFeatures, Segment
from .store_records import ClipNote, Failure, FeatureKind, FeatureRow, ListedClip, StoredFeatures, file_of
from .store_schema import CLIP_COLUMNS, FEATURE_STORE

if TYPE_CHECKING:
    import apsw

__all__ = ["ClipNote", "Failure", "FeatureKind", "FeatureRow", "FeatureStore", "StoredFeatures"]

_ROWS_AT_ONCE = 4096
_CLIP_ROW = "sha256, path, label, grp, file_sha256, start_us, end_us, person, camera"
_TIMES = msgspec.json.Decoder(tuple[float, ...])


class FeatureStore:
    """Open with ``FeatureStore.open``; a context manager."""

    def __init__(self, path: Path, database: apsw.Connection, lock: FileLock | None) -> None:
        self._path = path
        self._database = database
        self._lock = lock
        self._columns = CLIP_COLUMNS[int(database.pragma("user_version"))]

    @classmethod
    def open(cls, path: Path, *, create: bool = True, read_only: bool = False) -> FeatureStore:
        """Open the store at ``path``, creating it when there is none and ``create`` is True.

        A store of version 0.2.0 is migrated when it is opened for writing, and can be read before that.

        Raises LockedError when another process has it open for writing (and this one would write
        too), DataError ``store_missing`` or ``store_damaged``, SettingsError ``store_version`` for
        a store of another version, which is left as it is.
        """
        path = Path(path)
        if not path.exists():
            if not create or read_only:
                raise DataError(
                    f"{printable_path(path)}: there is no feature store",
                    fix="make one with: flamest-agent extract --bundle DIR --videos DIR --store FILE",
                    code="store_missing",
                )
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"cannot create {printable_path(path)}: {error.strerror}",
                    fix=f"check free space and permissions of {printable_path(path.parent)}",
                    code=storage_code(error),
                ) from error
        if read_only:
            return cls(path, open_for_reading(path, FEATURE_STORE), None)
        lock = FileLock.take(path.with_name(path.name + ".lock"), owner="an extraction")
        try:
            return cls(path, open_for_writing(path, FEATURE_STORE), lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        with translated_errors(self._path, FEATURE_STORE):
            self._database.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self, sha256: str, fingerprint: str, precision: str) -> bool:
        """True when the clip's features of this kind are stored."""
        query = "SELECT 1 FROM features WHERE sha256 = ? AND fingerprint = ? AND precision = ?"
        return any(self._rows(query, (sha256, fingerprint, precision)))

    def add(self, clip: Clip, features: ClipFeatures, *, name: str = "") -> None:
        """Store a clip's features (in place of older ones of the same kind) and forget its failure.

        ``name``: the path to remember, relative to the video folder (the file's name when empty).
        """
        self.add_all([(clip, features, name)])

    def add_all(self, clips: Iterable[tuple[Clip, ClipFeatures, str]]) -> None:
        """Store several clips as ``add`` does, in one transaction: clip, features, and name."""
        rows = [(name or clip.path.name, FeatureRow.of(clip, features)) for clip, features, name in clips]
        if rows:
            self.add_rows(rows)

    def add_rows(self, rows: Iterable[tuple[str, FeatureRow]]) -> None:
        """Store several clips' features, each with the path to remember, in one transaction."""
        with self._writing():
            for name, row in rows:
                self._put_clip(_clip_row(row.clip, name))
                x = np.ascontiguousarray(row.x, dtype="<f4").tobytes()
                kind = (row.clip.sha256, row.fingerprint, row.precision)
                values = (*kind, x, row.vlm_width, row.caption, row.keyframe, json.dumps(row.times_s))
                self._rows("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
                self._rows("DELETE FROM failures WHERE path = ? OR sha256 = ?", (name, row.clip.sha256))

    def note_clip(self, clip: Clip, *, name: str = "") -> None:
        """Record that the clip is listed, with its current label, group, person, camera and path; its features stay."""
        now = _clip_row(clip, name or clip.path.name)
        if self._rows(f"SELECT {_CLIP_ROW} FROM clips WHERE sha256 = ? AND listed", (clip.sha256,)) != [now]:
            with self._writing():
                self._put_clip(now)

    def labelled(self, sha256: str) -> ListedClip | None:
        """Return the row of a clip that has a label; None for another one."""
        query = "SELECT path, label, grp, person, camera FROM clips WHERE sha256 = ? AND listed AND label IS NOT NULL"
        rows = self._rows(query, (sha256,))
        return ListedClip(*rows[0]) if rows else None

    def keep_listed(
        self, file_sha256: str, listed: Collection[str], *, keeps: Callable[[str], bool] = lambda path: False
    ) -> None:
        """Take their labels from a file's clips, itself among them, whose identities are not in ``listed``.

        Their features stay, and listing them again (``add``, ``note_clip``) gives them a label again. ``keeps``:
        whether a clip that was last seen under this path keeps its label nevertheless.
        """
        query = "SELECT sha256, path FROM clips WHERE (file_sha256 = ?1 OR sha256 = ?1) AND listed"
        rows = self._rows(query, (file_sha256,))
        gone = [sha256 for sha256, path in rows if sha256 not in listed and not keeps(path)]
        if gone:
            with self._writing():
                for sha256 in gone:
                    self._rows("UPDATE clips SET listed = 0 WHERE sha256 = ?", (sha256,))

    def labelled_files(self) -> list[tuple[str, str]]:
        """Return path, as last seen, and SHA-256 of the files whose clips have a label."""
        query = (
            "SELECT DISTINCT path, start_us, end_us, iif(file_sha256 = '', sha256, file_sha256) FROM clips"
            " WHERE listed AND label IS NOT NULL"
        )
        return sorted({(file_of(path, self._segment(*times)), sha256) for path, *times, sha256 in self._rows(query)})

    def count_unlisted(self, fingerprint: str) -> int:
        """Count the clips with features of this bundle that have no label because they are listed no more."""
        query = (
            f"SELECT count(*) FROM clips WHERE NOT {self._columns.listed}"
            " AND sha256 IN (SELECT sha256 FROM features WHERE fingerprint = ?)"
        )
        return int(self._rows(query, (fingerprint,))[0][0])

    def note_failure(self, path: str, sha256: str, failure: Failure) -> None:
        """Record why the clip at ``path`` cannot be used, in place of an earlier failure of its content."""
        with self._writing():
            self._rows("DELETE FROM failures WHERE sha256 = ?", (sha256,))
            self._rows("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?)", (path, sha256, *failure))

    def forget_failure(self, sha256: str) -> None:
        """Forget why this content could not be used."""
        if self.failure(sha256) is not None:
            with self._writing():
                self._rows("DELETE FROM failures WHERE sha256 = ?", (sha256,))

    def failure(self, sha256: str) -> Failure | None:
        """Return the reason why this content could not be used when it was last tried."""
        for row in self._rows("SELECT code, message, limit_s FROM failures WHERE sha256 = ?", (sha256,)):
            return Failure(*row)
        return None

    def kinds(self) -> list[FeatureKind]:
        """Return the kinds of features in the store, the largest first."""
        query = "SELECT fingerprint, precision, count(*) FROM features GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
        return [FeatureKind(*row) for row in self._rows(query)]

    def _newest_first(self) -> list[FeatureKind]:
        query = "SELECT fingerprint, precision, count(*) FROM features GROUP BY 1, 2 ORDER BY max(rowid) DESC"
        return [FeatureKind(*row) for row in self._rows(query)]

    def width(self, fingerprint: str) -> int | None:
        """Return the width of the embeddings with this fingerprint, by the first of them; None: there are none."""
        rows = self._rows("SELECT length(x) / 4 FROM features WHERE fingerprint = ? LIMIT 1", (fingerprint,))
        return int(rows[0][0]) if rows else None

    def read(self, fingerprint: str | None = None, precision: str | None = None) -> StoredFeatures:
        """Return all features of one kind; the kind must be named where the store holds several.

        ``fingerprint``: whole, or enough of its beginning. Raises DataError: ``store_empty``,
        ``no_such_features``, or ``several_kinds`` naming those that would fit.
        """
        kind = self._choose(fingerprint, precision)
        query = (
            f"SELECT x, vlm_width, {self._columns.all}, sha256, caption, path FROM features JOIN clips USING (sha256)"
            " WHERE fingerprint = ? AND precision = ? ORDER BY sha256"
        )
        rows = list(self._rows(query, (kind.fingerprint, kind.precision)))
        layouts = {(len(row[0]), row[1]) for row in rows}
        if len(layouts) != 1:
            raise self._damaged(f"features of one kind have several widths: {sorted(layouts)[:5]}")
        size, vlm_width = layouts.pop()
        if size == 0 or size % 4 or not 0 <= vlm_width <= size // 4:
            raise self._damaged(f"embeddings of {size} bytes, {vlm_width} numbers of them from the first network")
        x = np.frombuffer(b"".join(row[0] for row in rows), dtype="<f4").reshape(len(rows), -1)
        if not all(np.isfinite(part).all() for part in np.array_split(x, 1 + len(x) // _ROWS_AT_ONCE)):
            raise self._damaged("an embedding holds NaN or infinity")
        _, _, labels, groups, persons, cameras, starts, ends, clips, captions, paths = zip(*rows, strict=True)
        segments = tuple(self._segment(*times) for times in zip(starts, ends, strict=True))
        kind_ = (kind.fingerprint, kind.precision, vlm_width)
        return StoredFeatures(x, labels, groups, clips, captions, paths, *kind_, segments, persons, cameras)

    def notes(self, fingerprint: str | None = None, precision: str | None = None) -> list[ClipNote]:
        """Return the same clips as ``read`` in the same order, without the embeddings. Raises as it does."""
        kind = self._choose(fingerprint, precision)
        query = (
            f"SELECT {self._columns.all}, sha256, path, caption, times FROM features JOIN clips USING (sha256)"
            " WHERE fingerprint = ? AND precision = ? ORDER BY sha256"
        )
        notes = []
        for label, group, person, camera, start, end, sha256, path, caption, times in self._rows(
            query, (kind.fingerprint, kind.precision)
        ):
            try:
                times_s = _TIMES.decode(times)
            except (msgspec.DecodeError, RecursionError) as error:
                raise self._damaged(f"times of keyframes: {error}") from error
            segment = self._segment(start, end)
            notes.append(ClipNote(sha256, label, group, path, caption, times_s, segment, person, camera))
        return notes

    def _segment(self, start_us: int | None, end_us: int | None) -> Segment | None:
        if start_us is None and end_us is None:
            return None
        if start_us is None or end_us is None or not 0 <= start_us < end_us:
            raise self._damaged(f"a segment from {start_us} to {end_us} microseconds")
        return Segment(start_us, end_us)

    def _damaged(self, problem: str) -> FlamestError:
        return damaged_error(self._path, FEATURE_STORE, problem)

    def _choose(self, fingerprint: str | None, precision: str | None) -> FeatureKind:
        kinds = self.kinds()
        if not kinds:
            raise DataError(
                f"{printable_path(self._path)} holds no features yet",
                fix="fill it with: flamest-agent extract --bundle DIR --videos DIR --store FILE",
                code="store_empty",
            )
        fits = [kind for kind in kinds if precision in (None, kind.precision)]
        exact = [kind for kind in fits if kind.fingerprint == fingerprint]
        fits = exact or [kind for kind in fits if kind.fingerprint.startswith(fingerprint or "")]
        if len(fits) == 1:
            return fits[0]
        held = "; ".join(f"{kind.clips} clips with {kind.fingerprint}, {kind.precision}" for kind in fits or kinds)
        if fits:
            newest = next(kind for kind in self._newest_first() if kind in fits)
            raise DataError(
                f"{printable_path(self._path)} holds features of several kinds: {held}",
                fix="choose one with --fingerprint and --precision; extracted last: "
                f"--fingerprint {newest.fingerprint[:12]} --precision {newest.precision}",
                code="several_kinds",
            )
        asked = f"fingerprint {fingerprint or 'any'}, precision {precision or 'any'}"
        raise DataError(
            f"{printable_path(self._path)} holds no features of {asked}; it has {held}",
            fix="extract with the bundle that is asked for, or ask for what is there",
            code="no_such_features",
        )

    def _put_clip(self, row: tuple[object, ...]) -> None:
        """Write a clip's row, as a listed one. An import may know less of a segment: its file and times stay."""
        query = (
            f"INSERT INTO clips ({_CLIP_ROW}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
            " ON CONFLICT (sha256) DO UPDATE SET path = ?2, label = ?3, grp = ?4, file_sha256 = max(file_sha256, ?5),"
            " start_us = coalesce(?6, start_us), end_us = coalesce(?7, end_us), person = ?8, camera = ?9, listed = 1"
        )
        self._rows(query, row)

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with translated_errors(self._path, FEATURE_STORE):
            return list(self._database.execute(query, values))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it is stored, or none."""
        self._rows("BEGIN IMMEDIATE")
        try:
            yield
            self._rows("COMMIT")
        finally:
            if self._database.in_transaction:
                self._rows("ROLLBACK")


def _clip_row(clip: Clip, name: str) -> tuple[object, ...]:
    """Return the values of ``_CLIP_ROW``."""
    times = (None, None) if clip.segment is None else (clip.segment.start_us, clip.segment.end_us)
    group = clip.group or Path(file_of(name, clip.segment)).stem
    return clip.sha256, name, clip.label, group, clip.file_sha256, *times, clip.person, clip.camera
