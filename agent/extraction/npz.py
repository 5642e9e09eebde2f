"""Features in and out as NumPy's ``.npz``: for a notebook, and from a researcher's own extractor.

Arrays of a file, N clips: ``x`` float [N, D]; ``y`` text [N], class names, empty where unknown; and,
not needed to read one, ``group`` text [N], ``clip`` text [N], ``caption`` text [N], ``file`` text [N],
``person`` and ``camera`` text or whole numbers [N], ``start_s`` and ``end_s`` [N], seconds of a segment
in its file, NaN for a whole file. Text is of fixed width (``np.array(names, dtype=str)``): arrays of
Python objects would have to be unpickled, and that runs whatever code a file holds.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, UsageError
from ...base.files import printable_path, write_atomic
from ...runtime.autotune.selection import available_bytes
from ...runtime.clip_records import Clip, Segment, clip_identity
from .groups import default_group
from .npz_arrays import Declared, NpzFile, open_npz
from .npz_times import TIMES, check_times, read_segments
from .store import FeatureRow, StoredFeatures

Text = npt.NDArray[np.str_]
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TEXTS = ("y", "group", "clip", "caption", "file", "person", "camera")  # arrays [N] of a file
MAYBE_NUMBERS = frozenset({"person", "camera"})  # that many number
# Names taken for another one: an array of such a name would be left out without a word.
MISNAMED = {"groups": "group", "clips": "clip", "captions": "caption"}
MAX_ROWS = 2_000_000  # clips
MAX_WIDTH = 65_536  # numbers of an embedding
MAX_MEMORY = 4 << 30  # bytes of all arrays together: Kinetics-400 in 2816 dimensions takes 3
ROWS_AT_ONCE = 4096
MAX_ASCII = 127


def imported_fingerprint(name: str, width: int) -> str:
    """Return the fingerprint that a run pins when its silos bring their own embeddings: ``imported:NAME:D``.

    Silos whose embeddings mean the same choose the same name, and only they can be averaged.
    Raises UsageError for a name that is not of lower-case letters, digits, dot, dash and underscore.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"the name {name!r} of the embeddings: expected lower-case letters, digits, . _ or -, at most 64",
            fix="--name vgg16-fc7",
        )
    return f"imported:{name}:{width}"


def write_npz(path: Path, stored: StoredFeatures) -> None:
    """All rows of one kind, and three scalars of it.

    Arrays: x, y, clip (SHA-256), group, caption, path, file, start_s and end_s (NaN for a whole file), person, camera.
    Raises StorageError when the file cannot be written; an older file stays whole until then.
    """
    arrays = {
        "x": stored.x,
        "y": _text(label or "" for label in stored.labels),
        "clip": _text(stored.clips),
        "group": _text(stored.groups),
        "caption": _text(stored.captions),
        "path": _text(stored.paths),
        "file": _text(stored.files),
        "start_s": np.array([math.nan if part is None else part.start_s for part in stored.segments]),
        "end_s": np.array([math.nan if part is None else part.end_s for part in stored.segments]),
        "person": _text(stored.persons),
        "camera": _text(stored.cameras),
        "fingerprint": np.array(stored.fingerprint),
        "precision": np.array(stored.precision),
        "vlm_width": np.array(stored.vlm_width),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # numpy.savez has a parameter ``file``, and so takes no such array
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    write_atomic(path, buffer.getbuffer(), mode=0o600)


def _text(texts: Iterable[str]) -> Text:
    return np.array(tuple(texts), dtype=np.str_)


@dataclass(frozen=True, eq=False)
class ImportedFeatures:
    """Contents of a researcher's file. Iterating yields each row with the path to remember, ready for the store."""

    x: npt.NDArray[np.float32]  # [N, D]
    columns: dict[str, Text]  # [N] each: y, and those of TEXTS that are there
    fingerprint: str
    precision: str
    segments: tuple[Segment | None, ...]  # [N]

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[tuple[str, FeatureRow]]:
        repeated = _repeated(self.columns.get("clip"))
        for row, segment in enumerate(self.segments):
            known = {key: str(column[row]) for key, column in self.columns.items()}
            name, clip = _clip(row, known, self.x[row], segment, of_file=known.get("clip") in repeated)
            caption = known.get("caption", "")
            yield name, FeatureRow(clip, self.x[row], 0, self.fingerprint, self.precision, caption)

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(np.unique(self.columns["y"]).tolist()) - {""}


def read_npz(path: Path, name: str) -> ImportedFeatures:
    """Read a researcher's file, whose embeddings are called ``name``.

    A clip that has a name (``clip``, or else ``file``) is known by it and its times: the same names with other
    embeddings (another ``name``) are the same clips. Without names a clip is identified by its row and its embedding.
    Raises DataError saying which array is not what it should be, ``too_large`` before it is read; StorageError.
    """
    with open_npz(path, ("x", *TEXTS, *TIMES)) as file:
        _refuse_misnamed(path, file.names)
        x = _check_declared(path, file.arrays)
        fingerprint = imported_fingerprint(name, x.shape[1])
        try:
            columns = {key: _text_column(file, key) for key in TEXTS if key in file.arrays}
            segments = read_segments(file, x.shape[0])
            embeddings = _embeddings(file)
        except MemoryError as error:
            raise _too_large(path, "it needs more memory than this process may have") from error
    precision = "fp16" if x.dtype == np.float16 else "fp32"
    return ImportedFeatures(embeddings, columns, fingerprint, precision, segments)


def _refuse_misnamed(path: Path, names: Collection[str]) -> None:
    for name, meant in MISNAMED.items():
        if name in names and meant not in names:
            raise DataError(
                f"{printable_path(path)} holds an array '{name}', which is not read: it is called '{meant}'",
                fix=f"numpy.savez(FILE, x=x, y=y, {meant}={name})",
            )


def _check_declared(path: Path, arrays: Mapping[str, Declared]) -> Declared:
    """Return x; raise DataError unless all arrays are of the right kind, shape and size."""
    for needed in ("x", "y"):
        if needed not in arrays:
            raise DataError(
                f"{printable_path(path)} has no array '{needed}', expected x [N, D] and y [N]",
                fix="numpy.savez(FILE, x=x, y=y), with a row of x and a class name for each clip",
            )
    x = arrays["x"]
    if len(x.shape) != 2 or x.dtype.kind != "f" or 0 in x.shape:
        raise DataError(
            f"{printable_path(path)}: x is {x}, expected floating point [N, D]",
            fix="save x as a two-dimensional array: numpy.savez(FILE, x=x.astype('float32'), y=y)",
        )
    rows, width = x.shape
    if rows > MAX_ROWS or width > MAX_WIDTH:
        raise _too_large(path, f"x is {x}, expected at most {MAX_ROWS} rows of {MAX_WIDTH} numbers")
    needed_bytes = 4 * x.count
    for key in TEXTS:
        if (text := arrays.get(key)) is None:
            continue
        if text.shape != (rows,) or text.dtype.kind not in ("USiu" if key in MAYBE_NUMBERS else "US"):
            raise DataError(
                f"{printable_path(path)}: {key} is {text}, expected text [{rows}]",
                fix="save one text for each row of x: numpy.array([...], dtype=str)",
            )
        needed_bytes += rows * 80 if text.dtype.kind in "iu" else text.bytes * (4 if text.dtype.kind == "S" else 1)
    needed_bytes += check_times(path, arrays, rows)
    largest = min(MAX_MEMORY, (available_bytes() or 2 * MAX_MEMORY) // 2)
    if needed_bytes > largest:
        raise _too_large(path, f"its arrays need {needed_bytes / 1e9:.2f} GB, expected at most {largest / 1e9:.2f} GB")
    return x


def _too_large(path: Path, problem: str) -> DataError:
    return DataError(
        f"{printable_path(path)}: {problem}",
        fix="write the clips into several files, and import them one after the other into the same store",
        code="too_large",
    )


def _embeddings(file: NpzFile) -> npt.NDArray[np.float32]:
    """Read x [N, D]. Raises DataError ``not_finite`` naming the first row with NaN or infinity."""
    embeddings = cast("npt.NDArray[np.float32]", file.read("x", np.float32))
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        finite = np.isfinite(embeddings[start : start + ROWS_AT_ONCE]).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            message = f"{printable_path(file.path)}: x holds NaN or infinity, first in row {row}"
            raise DataError(message, fix="remove these rows, or compute their embeddings again", code="not_finite")
    return embeddings


def _text_column(file: NpzFile, key: str) -> Text:
    """Read an array of texts [N]. Raises DataError naming the row of one that the store and a terminal cannot have."""
    if (kind := file.arrays[key].dtype.kind) in "iu":
        numbers = file.read(key, np.uint64 if kind == "u" else np.int64)
        return cast("Text", numbers.astype(np.str_))
    column = file.read(key, np.str_)
    if column.dtype.kind == "S":
        if any(int(letter) > MAX_ASCII for letter in np.unique(column.view(np.uint8))):
            raise DataError(
                f"{printable_path(file.path)}: {key} holds bytes that are not ASCII; save it as str",
                fix="numpy.array([...], dtype=str)",
            )
        column = column.astype(np.str_)
    letters = column.view(np.uint32).reshape(len(column), -1)
    for start in range(0, len(column), ROWS_AT_ONCE):
        bad = _unprintable(letters[start : start + ROWS_AT_ONCE], line_breaks=key == "caption")
        if bad.any():
            raise DataError(
                f"{printable_path(file.path)}: {key} holds a control character or one that Unicode does not have, "
                f"first in row {start + int(np.flatnonzero(bad)[0])}",
                fix="remove such characters from names",
            )
    return cast("Text", column)


def _unprintable(letters: npt.NDArray[np.uint32], *, line_breaks: bool) -> npt.NDArray[np.bool_]:
    """Return which rows of code points [N, width] hold something that is no text; zeros at the end fill the width."""
    control = (letters < 0x20) | ((letters >= 0x7F) & (letters < 0xA0))
    control &= letters != 0
    if line_breaks:
        control &= (letters != 9) & (letters != 10) & (letters != 13)
    inner_zero = (letters[:, :-1] == 0) & (letters[:, 1:] != 0)
    no_character = ((letters >= 0xD800) & (letters < 0xE000)) | (letters > 0x10FFFF)
    bad: npt.NDArray[np.bool_] = (control | no_character).any(axis=1) | inner_zero.any(axis=1)
    return bad


def _repeated(clips: Text | None) -> frozenset[str]:
    """Return the hashes that name several rows: of files then, whose segments the rows are."""
    if clips is None:
        return frozenset()
    values, counts = np.unique(clips, return_counts=True)
    return frozenset(value for value in values[counts > 1].tolist() if SHA256.fullmatch(value))


def _clip(
    row: int, known: Mapping[str, str], x: npt.NDArray[np.float32], segment: Segment | None, *, of_file: bool
) -> tuple[str, Clip]:
    """Return the path to remember and the clip of a row; ``of_file``: the hash in ``clip`` is the file's."""
    named, file_sha256 = known.get("clip", ""), ""
    path = file = known.get("file", "") or named or f"row-{row:06d}"
    if segment is not None:
        path = f"{file.removesuffix(f'#{segment}')}#{segment}"
    if SHA256.fullmatch(named):
        file_sha256 = named if segment is not None and of_file else ""
        sha256 = clip_identity(named, segment) if of_file else named
    else:
        named = named or known.get("file", "")
        if named and segment is not None:
            named = f"{named.removesuffix(f'#{segment}')}#{segment}"
        identity = named.encode() if named else row.to_bytes(8, "little") + x.tobytes()
        sha256 = hashlib.sha256(b"imported clip\0" + identity).hexdigest()
    label = known["y"] or None
    person, camera = known.get("person", ""), known.get("camera", "")
    group = known.get("group") or person or default_group(Path(file).stem, label)
    return Path(path).as_posix(), Clip(Path(file), sha256, label, group, segment, file_sha256, person, camera)
