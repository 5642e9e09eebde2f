"""Timelines as ``predict --timeline`` shows them: lines for people, CSV rows, entries of --json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .prediction_output import csv_line

if TYPE_CHECKING:
    from ..timeline.events import Timeline, TimelineEvent


def timeline_entry(timeline: Timeline) -> dict[str, Any]:
    """Return a video's timeline for --json."""
    entry = {
        "video": str(timeline.video),
        "length_s": timeline.length_s,
        "windows": timeline.windows,
        "events": [event.as_json() for event in timeline.events],
    }
    return {**entry, "reason": timeline.reason} if timeline.reason else entry


def timeline_lines(timeline: Timeline) -> list[str]:
    """Return a video's timeline as text."""
    if timeline.reason:
        return [str(timeline.video), f"  {timeline.reason}"]
    actions = {event.label for event in timeline.events if not event.unknown}
    heading = (
        f"{timeline.video}: {clock(timeline.length_s)}, {len(actions)} different action{'s' * (len(actions) != 1)}"
    )
    return [heading, *(line for event in timeline.events for line in _event_lines(event))]


def csv_header(top: int) -> str:
    """Return the first line of --csv, for so many labels."""
    labels = [f"{name}_{number}" for number in range(1, top + 1) for name in ("label", "probability")]
    return csv_line(["video", "start", "end", "label", "probability", "unknown", *labels, "warnings", "reason"])


def csv_lines(timeline: Timeline, top: int) -> list[str]:
    """Return a video's timeline as lines of --csv: one for each event, or one with the reason why there is none."""
    if timeline.reason:
        return [csv_line([timeline.video, *[""] * (6 + 2 * top), timeline.reason])]
    lines = []
    for event in timeline.events:
        probability = f"{event.probability:.6f}" if event.label else ""
        unknown = "true" if event.unknown else "false"
        cells = [cell for item in event.labels[:top] for cell in (item.label, f"{item.probability:.6f}")]
        cells += [""] * (2 * top - len(cells))
        first = [timeline.video, event.start_s, event.end_s, event.label, probability, unknown]
        lines.append(csv_line([*first, *cells, "; ".join(event.warnings), event.reason]))
    return lines


def clock(seconds: float) -> str:
    """Return a time as ``1:02:03.5`` or ``2:03.5``."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def _event_lines(event: TimelineEvent) -> list[str]:
    times = f"  {clock(event.start_s):>10} – {clock(event.end_s):<10}"
    if event.reason:
        return [f"{times} not readable: {event.reason}"]
    shown = f"{times} {event.probability:6.1%}  {event.label}"
    if event.unknown:
        likeliest = event.labels[0].label if event.labels else ""
        shown = f"{times}          unknown (likeliest: {likeliest}, {event.probability:.1%})"
    return [shown, *(f"      warning: {warning}" for warning in event.warnings)]
