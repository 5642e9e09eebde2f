"""Features in and out as NumPy's ``.npz``: for a notebook, and from a researcher's own extractor.

Arrays of a file, N clips: ``x`` float [N, D]; ``y`` text [N], class names, empty where unknown; and,
not needed to read one, ``group`` text [N], ``clip`` text [N], ``caption`` text [N]. Text is of fixed
width (``np.array(names, dtype=str)``): arrays of Python objects would have to be unpickled, and that
runs whatever code a file holds.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, StorageError, UsageError
from ...base.files import printable_path, write_atomic
from ...runtime.clip_records import Clip
from .clips import default_group
from .store import FeatureRow, StoredFeatures

Text = npt.NDArray[np.str_]
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def imported_fingerprint(name: str, width: int) -> str:
    """Return the fingerprint that a run pins when its silos bring their own embeddings: ``imported:NAME:D``.

    Silos whose embeddings mean the same choose the same name, and only they can be averaged.
    Raises UsageError for a name that is not of lower-case letters, digits, dot, dash and underscore.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"the name {name!r} of the embeddings: expected lower-case letters, digits, . _ or -, at most 64"
        )
    return f"imported:{name}:{width}"


def write_npz(path: Path, stored: StoredFeatures) -> None:
    """All rows of one kind: x, y, clip (SHA-256), group, caption, path, and three scalars of the kind.

    Raises StorageError when the file cannot be written; an older file stays whole until then.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        x=stored.x,
        y=np.array([label or "" for label in stored.labels], dtype=np.str_),
        clip=np.array(stored.clips, dtype=np.str_),
        group=np.array(stored.groups, dtype=np.str_),
        caption=np.array(stored.captions, dtype=np.str_),
        path=np.array(stored.paths, dtype=np.str_),
        fingerprint=np.array(stored.fingerprint),
        precision=np.array(stored.precision),
        vlm_width=np.array(stored.vlm_width),
    )
    write_atomic(path, buffer.getbuffer(), mode=0o600)


def read_npz(path: Path, name: str) -> list[tuple[str, FeatureRow]]:
    """The rows of a researcher's file, each with the path to remember, ready for the store.

    A clip that has a name is known by it: the same names with other embeddings (another ``name``)
    are the same clips. Without names a clip is identified by its row and its embedding.
    Raises DataError saying which array is not what it should be.
    """
    arrays = _load(path)
    for needed in ("x", "y"):
        if needed not in arrays:
            raise DataError(f"{printable_path(path)} has no array '{needed}', expected x [N, D] and y [N]")
    x = _embeddings(path, arrays["x"])
    columns: dict[str, Text] = {
        key: _text_column(path, key, arrays[key], len(x)) for key in ("y", "group", "clip", "caption") if key in arrays
    }
    fingerprint = imported_fingerprint(name, x.shape[1])
    precision = "fp16" if arrays["x"].dtype == np.float16 else "fp32"
    return [
        (clip.path.as_posix(), FeatureRow(clip, x[row], 0, fingerprint, precision, caption))
        for row, (clip, caption) in enumerate(_clips(columns, x))
    ]


def _clips(columns: dict[str, Text], x: npt.NDArray[np.float32]) -> Iterator[tuple[Clip, str]]:
    """Yield each row's clip and caption."""
    for row in range(len(x)):
        known = {key: str(column[row]) for key, column in columns.items()}
        named = known.get("clip", "")
        if SHA256.fullmatch(named):
            sha256 = named
        else:
            identity = named.encode() if named else row.to_bytes(8, "little") + x[row].tobytes()
            sha256 = hashlib.sha256(b"imported clip\0" + identity).hexdigest()
        path = Path(named or f"row-{row:06d}")
        label = known["y"] or None
        group = known.get("group") or default_group(path.stem, label)
        yield Clip(path, sha256, label, group), known.get("caption", "")


def _load(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        with path.open("rb") as file:  # opened here: np.load leaves it open when it fails
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise DataError(f"{printable_path(path)} is a single array, expected an .npz file with x and y")
            return {key: loaded[key] for key in loaded.files}
    except OSError as error:
        raise StorageError(f"cannot read {printable_path(path)}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{printable_path(path)} cannot be read as .npz: {error}",
            fix="save text as fixed width, np.array(names, dtype=str); object arrays would need unpickling",
        ) from error


def _embeddings(path: Path, x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    if x.ndim != 2 or not np.issubdtype(x.dtype, np.floating) or 0 in x.shape:
        raise DataError(f"{printable_path(path)}: x is {x.dtype}{list(x.shape)}, expected floating point [N, D]")
    with np.errstate(over="ignore"):
        embeddings = x.astype(np.float32)
    if not np.isfinite(embeddings).all():
        row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise DataError(f"{printable_path(path)}: x holds NaN or infinity, first in row {row}", code="not_finite")
    return embeddings


def _text_column(path: Path, key: str, column: npt.NDArray[np.generic], rows: int) -> Text:
    if column.shape != (rows,) or column.dtype.kind not in "US":
        raise DataError(f"{printable_path(path)}: {key} is {column.dtype}{list(column.shape)}, expected text [{rows}]")
    try:
        return column.astype(np.str_)  # bytes: ASCII only
    except UnicodeDecodeError as error:
        raise DataError(f"{printable_path(path)}: {key} holds bytes that are not ASCII; save it as str") from error
