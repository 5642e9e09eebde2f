"""The feature store: the features of a silo's clips, in one SQLite file.

SQLite comes from apsw (the standard library's may be a version with a fault in its write-ahead
log). One process writes at a time, others may read meanwhile. Every clip is one transaction with
synchronous=FULL, so a power cut costs at most the clip in progress. All of it can be extracted again from
the clips; labels and groups come from the folder at each extraction.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, FlamestError, StorageError
from ...base.files import FileLock, printable_path, storage_code
from ...base.sqlite import damaged_error, open_for_reading, open_for_writing, translated_errors
from ...runtime.clip_records import Clip, ClipFeatures
from .store_schema import FEATURE_STORE

if TYPE_CHECKING:
    import apsw

_ROWS_AT_ONCE = 4096
_TIMES = msgspec.json.Decoder(tuple[float, ...])


class FeatureKind(NamedTuple):
    """Features that may be trained on together."""

    fingerprint: str
    precision: str
    clips: int


class Failure(NamedTuple):
    """The reason why a clip could not be used when it was last tried."""

    code: str
    message: str
    limit_s: float | None = None  # seconds that decoding was allowed; None: not stored yet


@dataclass(frozen=True, eq=False)
class FeatureRow:
    """The embedding of one clip, as it is stored."""

    clip: Clip
    x: npt.NDArray[np.float32]  # [D]
    vlm_width: int
    fingerprint: str
    precision: str
    caption: str = ""
    keyframe: int = 0
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """All features of one kind, ordered by the clips' SHA-256."""

    x: npt.NDArray[np.float32]  # [N, D]
    labels: tuple[str | None, ...]
    groups: tuple[str, ...]
    clips: tuple[str, ...]  # SHA-256
    captions: tuple[str, ...]
    paths: tuple[str, ...]  # relative to the video folder, as last seen
    fingerprint: str
    precision: str
    vlm_width: int  # x[:, :vlm_width] is the vision-language part; 0 where the parts are not known


@dataclass(frozen=True)
class ClipNote:
    """Everything that a store holds of a clip except its embedding."""

    sha256: str
    label: str | None
    group: str
    path: str  # relative to the video folder, as last seen
    caption: str
    times_s: tuple[float, ...]  # of the keyframes, seconds from clip start; empty where not known


class FeatureStore:
    """Open with ``FeatureStore.open``; a context manager."""

    def __init__(self, path: Path, database: apsw.Connection, lock: FileLock | None) -> None:
        self._path = path
        self._database = database
        self._lock = lock

    @classmethod
    def open(cls, path: Path, *, create: bool = True, read_only: bool = False) -> FeatureStore:
        """Open the store at ``path``, creating it when there is none and ``create`` is True.

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
        rows = [(name or clip.path.name, _feature_row(clip, features)) for clip, features, name in clips]
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
        """Record the clip's current label, group and path; its features stay."""
        now = _clip_row(clip, name or clip.path.name)
        if self._rows("SELECT * FROM clips WHERE sha256 = ?", (clip.sha256,)) != [now]:
            with self._writing():
                self._put_clip(now)

    def note_failure(self, path: str, sha256: str, failure: Failure) -> None:
        """Record why the clip at ``path`` cannot be used, in place of an earlier failure of its content."""
        with self._writing():
            self._rows("DELETE FROM failures WHERE sha256 = ?", (sha256,))
            self._rows("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?)", (path, sha256, *failure))

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
            "SELECT x, vlm_width, label, grp, sha256, caption, path FROM features JOIN clips USING (sha256)"
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
        _, _, labels, groups, clips, captions, paths = zip(*rows, strict=True)
        return StoredFeatures(x, labels, groups, clips, captions, paths, kind.fingerprint, kind.precision, vlm_width)

    def notes(self, fingerprint: str | None = None, precision: str | None = None) -> list[ClipNote]:
        """Return the same clips as ``read`` in the same order, without the embeddings. Raises as it does."""
        kind = self._choose(fingerprint, precision)
        query = (
            "SELECT sha256, label, grp, path, caption, times FROM features JOIN clips USING (sha256)"
            " WHERE fingerprint = ? AND precision = ? ORDER BY sha256"
        )
        rows = self._rows(query, (kind.fingerprint, kind.precision))
        try:
            return [
                ClipNote(sha256, label, group, path, caption, _TIMES.decode(times))
                for sha256, label, group, path, caption, times in rows
            ]
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._damaged(f"times of keyframes: {error}") from error

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

    def _put_clip(self, row: tuple[str, str, str | None, str]) -> None:
        query = (
            "INSERT INTO clips VALUES (?1, ?2, ?3, ?4)"
            " ON CONFLICT (sha256) DO UPDATE SET path = ?2, label = ?3, grp = ?4"
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


def _feature_row(clip: Clip, features: ClipFeatures) -> FeatureRow:
    return FeatureRow(
        clip=clip,
        x=np.concatenate([features.vlm, features.cnn]),
        vlm_width=len(features.vlm),
        fingerprint=features.fingerprint,
        precision=features.precision,
        caption=features.caption.text,
        keyframe=features.keyframe,
        times_s=features.keyframe_times_s,
    )


def _clip_row(clip: Clip, name: str) -> tuple[str, str, str | None, str]:
    return clip.sha256, name, clip.label, clip.group or Path(name).stem
