"""Predictions as ``predict`` shows them: lines for people, CSV rows, entries of --json."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...base.errors import printable

if TYPE_CHECKING:
    from ...runtime.clip_records import Segment
    from ..answers import LabelProbability
    from ..predict import Prediction


def prediction_entry(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction for --json."""
    entry = {
        "video": str(prediction.video),
        **_times(prediction.segment),
        "answer": prediction.answer,
        "unknown": not prediction.known,
        "labels": _labels(prediction.labels),
        "caption": prediction.caption,
        "warnings": list(prediction.warnings),
    }
    return {**entry, "reason": prediction.reason} if prediction.reason else entry


def prediction_lines(prediction: Prediction) -> list[str]:
    """Return a prediction as text."""
    labels = [f"  {item.probability:6.1%}  {item.label}" for item in prediction.labels]
    unknown = [] if prediction.known else ["  unknown: no label is likely enough"]
    last = prediction.reason or (f"caption: {prediction.caption}" if prediction.caption else "")
    warnings = [f"  warning: {warning}" for warning in prediction.warnings]
    return [prediction.name, *unknown, *labels, *([f"  {last}"] if last else []), *warnings]


def csv_header(top: int) -> str:
    """Return the first line of --csv, for so many labels."""
    labels = [f"{name}_{number}" for number in range(1, top + 1) for name in ("label", "probability")]
    return csv_line(["video", "start_s", "end_s", "answer", *labels, "caption", "warnings", "reason"])


def csv_lines(prediction: Prediction, top: int) -> list[str]:
    """Return a prediction as lines of --csv; control characters are escaped, so that a row is a line."""
    times = _times(prediction.segment)
    cells = [cell for item in prediction.labels for cell in (item.label, f"{item.probability:.6f}")]
    cells += [""] * (2 * top - len(cells))
    warnings = "; ".join(prediction.warnings)
    ends = [prediction.caption, warnings, prediction.reason]
    return [csv_line([prediction.video, times["start_s"], times["end_s"], prediction.answer, *cells, *ends])]


def _labels(labels: Sequence[LabelProbability]) -> list[dict[str, Any]]:
    return [{"label": item.label, "probability": item.probability} for item in labels]


def _times(part: Segment | None) -> dict[str, float | None]:
    return {"start_s": None if part is None else part.start_s, "end_s": None if part is None else part.end_s}


def csv_line(cells: Sequence[object]) -> str:
    """Return the cells as a line of RFC 4180 without its end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow("" if cell is None else printable(str(cell)) for cell in cells)
    return text.getvalue()
