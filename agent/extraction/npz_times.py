"""Times of segments in an ``.npz`` file: arrays ``start_s`` and ``end_s``, NaN for clips that are whole files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...base.files import printable_path
from ...runtime.clip_records import Segment
from .npz_arrays import Declared, NpzFile

TIMES = ("start_s", "end_s")  # arrays [N], both or none
MAX_TIME_S = 31_536_000  # a year


def check_times(path: Path, arrays: Mapping[str, Declared], rows: int) -> int:
    """Return the bytes that the times of segments take; raise DataError unless both are there, or none."""
    there = [name for name in TIMES if name in arrays]
    if len(there) == 1:
        raise DataError(
            f"{printable_path(path)} has an array '{there[0]}' without the other of {' and '.join(TIMES)}",
            fix="save both, in seconds; NaN in both for a clip that is a whole file",
        )
    for name in there:
        if arrays[name].shape != (rows,) or arrays[name].dtype.kind not in "fiu":
            raise DataError(
                f"{printable_path(path)}: {name} is {arrays[name]}, expected numbers [{rows}]",
                fix="save one time in seconds for each row of x, NaN for a clip that is a whole file",
            )
    return 200 * rows if there else 0


def read_segments(file: NpzFile, rows: int) -> tuple[Segment | None, ...]:
    """Read the times of segments [N]. Raises DataError naming the first row whose times are none."""
    if TIMES[0] not in file.arrays:
        return (None,) * rows
    starts, ends = (cast("npt.NDArray[np.float64]", file.read(name, np.float64)) for name in TIMES)
    whole = np.isnan(starts) & np.isnan(ends)
    with np.errstate(invalid="ignore"):  # of NaN in one of them
        good = whole | ((starts >= 0) & (ends <= MAX_TIME_S) & (np.rint(starts * 1e6) < np.rint(ends * 1e6)))
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise DataError(
            f"{printable_path(file.path)}: start_s {starts[row]:g} and end_s {ends[row]:g} in row {row}, expected "
            f"0 <= start_s < end_s <= {MAX_TIME_S}",
            fix="save seconds from the video's first frame; NaN in both for a clip that is a whole file",
        )
    return tuple(
        None if is_whole else Segment.of_seconds(float(start), float(end))
        for is_whole, start, end in zip(whole, starts, ends, strict=True)
    )
