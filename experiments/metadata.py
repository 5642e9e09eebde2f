"""Metadata-only baseline: prediction of the class from frame size, length and bytes of the file alone.

Real data sets leak their classes through cutting and encoding; an accuracy on video means little without this
number to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import DataError, MissingExtra, StorageError
from ..runtime.clip_records import Segment
from ..runtime.video.video_file import ALLOWED_FORMATS
from .silos import LabelledVideo

if TYPE_CHECKING:
    import av.container
    import numpy as np
    import numpy.typing as npt

    Table = npt.NDArray[np.float64]

COLUMNS = ("width", "height", "seconds", "fps", "bytes")
TREES = 100


def metadata_features(paths: Sequence[Path], segments: Sequence[Segment | None] | None = None) -> Table:
    """float64 [N, 5]: each file's width and height (pixels), length (seconds), frames per second, bytes.

    Of a segment the length is its own, and the bytes are its share of the file's by length. Read from the container
    alone, without frames. Values missing in the header, or all but the bytes when the file cannot be read, are 0.
    Raises MissingExtra without PyAV, StorageError when a file does not exist.
    """
    import numpy as np

    headers = {path: (*_header(path), _bytes(path)) for path in dict.fromkeys(paths)}
    parts = segments if segments is not None else [None] * len(paths)
    rows = [_of_part(headers[path], segment) for path, segment in zip(paths, parts, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(COLUMNS))


def metadata_accuracy(train: Sequence[LabelledVideo], test: Sequence[LabelledVideo], *, seed: int = 0) -> float:
    """Share of the test clips (0 … 1) whose class a random forest predicts from ``metadata_features``.

    scikit-learn's RandomForestClassifier with 100 trees and its other defaults, fitted on the training clips;
    the same seed gives the same value. Raises DataError when a side is empty, MissingExtra without
    scikit-learn or PyAV.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise MissingExtra("scikit-learn", extra="agent") from error
    if not train or not test:
        raise DataError(
            f"the metadata baseline got {len(train)} training and {len(test)} test clips, expected at least 1 of each",
            fix="give more clips with --videos",
        )
    forest = RandomForestClassifier(n_estimators=TREES, random_state=seed)
    forest.fit(_features(train), [video.label for video in train])
    return float(forest.score(_features(test), [video.label for video in test]))


def _features(videos: Sequence[LabelledVideo]) -> Table:
    return metadata_features([video.path for video in videos], [video.segment for video in videos])


def _of_part(file: tuple[float, ...], segment: Segment | None) -> tuple[float, ...]:
    """The row of a segment, from that of its file."""
    if segment is None:
        return file
    width, height, seconds, rate, size = file
    length = max(0.0, min(segment.end_s, seconds or segment.end_s) - segment.start_s)
    return width, height, length, rate, size * min(1.0, length / seconds) if seconds else 0.0


def _bytes(path: Path) -> float:
    try:
        return float(Path(path).stat().st_size)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", fix="check that this user may read it") from error


def _header(path: Path) -> tuple[float, float, float, float]:
    """Width, height, seconds, frames per second."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", extra="agent") from error
    # The runtime's list of formats: none of them can refer to another file, as a playlist does.
    allowed = {"format_whitelist": ALLOWED_FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(str(path), metadata_errors="ignore", container_options=allowed) as container:
            return _describe(container)
    except (av.FFmpegError, OSError, ValueError):  # not a video, or a damaged one: its bytes still count
        return (0.0, 0.0, 0.0, 0.0)


def _describe(container: av.container.InputContainer) -> tuple[float, float, float, float]:
    import av

    if not container.streams.video:
        return (0.0, 0.0, 0.0, 0.0)
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate or Fraction(0)
    seconds = Fraction(0)
    if stream.duration is not None and stream.time_base is not None:
        seconds = stream.duration * stream.time_base
    elif container.duration is not None:
        seconds = Fraction(container.duration, av.time_base)
    return (float(stream.width), float(stream.height), float(seconds), float(rate))
