"""Checks of what a caller of the Python API gives: numbers, paths, arrays, features and columns of texts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..base.errors import DataError, FlamestError, UsageError

MOST_SHOWN = 40  # characters of a value in a message


def whole_number(name: str, value: Any, *, least: int, like: int) -> int:
    """Return ``value`` as an int. Raises UsageError unless it is a whole number of ``least`` or more."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise UsageError(
            f"{name} is {shown(value)}, expected a whole number of {least} or more", fix=f"write {name}={like}"
        )
    return int(value)


def finite_number(name: str, value: Any, *, like: float) -> float:
    """Return ``value`` as a float. Raises UsageError unless it is a finite number."""
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise UsageError(f"{name} is {shown(value)}, expected a number", fix=f"write {name}={like}")
    return float(value)


def path_of(name: str, value: Any, *, like: str) -> Path:
    """Return ``value`` as a path. Raises UsageError unless it is a text or a path."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or isinstance(os.fspath(value), bytes):
        raise UsageError(f"{name} is {shown(value)}, expected a path", fix=f"write {like}")
    return Path(value)


def labelled_features(name: str, value: Any, kind: type) -> None:
    """Raise UsageError unless ``value`` is of the class ``Features``, which is ``kind``."""
    if isinstance(value, kind):
        return
    if isinstance(value, str | os.PathLike):
        fix = f"load the file first: fl.load({shown(os.fspath(value))})"
    elif hasattr(value, "union"):
        fix = f"give the features of one silo, {name}[0], or of all, {name}.union"
    elif isinstance(value, Mapping | tuple) and any(isinstance(part, kind) for part in _parts(value)):
        fix = "give one of the features in it; fl.split returns two things: silos, test = fl.split(f)"
    else:
        fix = "make them of arrays: fl.Features.from_arrays(x, y), with a label for each row"
    raise UsageError(f"{name} is {shown(value)}, expected features", fix=fix)


def embeddings(name: str, value: Any) -> npt.NDArray[np.float32]:
    """Return ``value`` as a new float32 array [clips, width].

    Raises DataError (``bad_table``, ``not_finite``) for what is no matrix of finite numbers.
    """
    try:
        found = np.asarray(value)
        found = found.astype(np.float64) if found.dtype == object else found
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_matrix(name, f"cannot be read as an array: {error}") from error
    if found.dtype.kind not in "fiub":
        raise _no_matrix(name, f"holds {found.dtype}, expected real numbers")
    if found.ndim != 2 or found.shape[1] == 0:
        raise _no_matrix(name, f"has the shape {list(found.shape)}, expected [clips, width]")
    if not np.isfinite(found).all():
        raise DataError(f"{name} holds NaN or infinity", fix="leave such rows out", code="not_finite")
    with np.errstate(over="ignore"):
        values = np.array(found, dtype=np.float32, order="C")
    if not np.isfinite(values).all():
        raise DataError(
            f"{name} holds {np.abs(found).max():.3g}, more than float32 can have (3.4e38)",
            fix="scale the embeddings, or leave such rows out",
            code="not_finite",
        )
    return values


def texts(name: str, values: Any, rows: int) -> list[str | None]:
    """Return a value for each of ``rows`` rows as text; None where it is missing (None, NaN or an empty text).

    Raises DataError for another number of values, and for bytes that are not UTF-8.
    """
    found = np.asarray(values, dtype=object if isinstance(values, list | tuple) else None)
    if found.shape != (rows,):
        raise DataError(
            f"{name} has the shape {list(found.shape)}, expected [{rows}], one for each row of x",
            fix="give one value for each row of x",
        )
    return [_text(name, value) for value in found.tolist()]


@contextmanager
def fixes(of_code: Mapping[str, str]) -> Iterator[None]:
    """Give errors of these codes a fix in words of Python instead of the commands'."""
    try:
        yield
    except FlamestError as error:
        if error.code not in of_code:
            raise
        raise type(error)(error.message, fix=of_code[error.code], code=error.code) from error


def shown(value: Any) -> str:
    """Return a value for a message: a short one as it is written, another by its type."""
    if value is None or isinstance(value, str | int | float | np.generic):
        text = repr(value.item() if isinstance(value, np.generic) else value)
        return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"
    return f"of the type {type(value).__name__}"


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            return value.decode() or None
        except UnicodeDecodeError as error:
            raise DataError(f"{name} holds bytes that are not UTF-8: {value!r}", fix="give texts") from error
    try:
        missing = bool(value != value)  # NaN, and pandas' NaT
    except (TypeError, ValueError):  # pandas' NA has no truth value
        missing = True
    return None if missing else str(value) or None


def _no_matrix(name: str, problem: str) -> DataError:
    return DataError(
        f"{name} {problem}", fix="give a two-dimensional array of numbers, a row for each clip", code="bad_table"
    )


def _parts(value: Mapping[Any, Any] | Sequence[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else list(value)
