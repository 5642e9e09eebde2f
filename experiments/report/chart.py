"""The report's line chart, as inline SVG: accuracy per round over the baselines.

Lines differ in colour, in dash and by a label at their end, so that colour alone carries no information.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from .html import node, percent

WIDTH, HEIGHT = 860, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 196, 18, 46  # margins; the right one holds the labels
LINE_HEIGHT = 17  # minimum distance of two labels
MAX_DOTS = 24  # with more rounds there are no dots
MAX_TICKS = 10  # on the axis of rounds


@dataclass(frozen=True)
class Baseline:
    """A horizontal line: an accuracy (0 … 1) that is the same for all rounds."""

    name: str
    accuracy: float | None  # None: not drawn
    style: str  # class in the style sheet


def accuracy_chart(points: Sequence[tuple[int, float | None]], baselines: Sequence[Baseline]) -> Element:
    """The chart of ``points`` (round, accuracy or None for an abandoned round), as an ``svg`` element."""
    known = [(number, accuracy) for number, accuracy in points if accuracy is not None]
    drawn = [(line, line.accuracy) for line in baselines if line.accuracy is not None]
    first, last = (points[0][0], points[-1][0]) if points else (0, 1)
    ends = [(f"{line.name} {percent(accuracy)}", _y(accuracy), line.style) for line, accuracy in drawn]
    if known:
        ends.append((f"Federated {percent(known[-1][1])}", _y(known[-1][1]), "federated"))
    return node(
        "svg",
        node("title", "Accuracy on held-out clips after each round"),
        node("desc", _describe(known, drawn)),
        *_axes(first, last),
        *(
            node("path", d=f"M{LEFT} {_y(accuracy):.1f}H{WIDTH - RIGHT}", cls=f"line {b.style}")
            for b, accuracy in drawn
        ),
        *_federated(points, first, last, [_y(accuracy) for _, accuracy in drawn]),
        *_labels(ends),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )


def _x(number: int, first: int, last: int) -> float:
    inner = WIDTH - LEFT - RIGHT
    return LEFT + 14 + (inner - 28) * ((number - first) / (last - first) if last > first else 0.5)


def _y(accuracy: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(accuracy, 0.0), 1.0))


def _describe(known: Sequence[tuple[int, float]], drawn: Sequence[tuple[Baseline, float]]) -> str:
    parts = [f"{line.name}: {percent(accuracy)}." for line, accuracy in drawn]
    if known:
        start, end = known[0], known[-1]
        parts.insert(0, f"Federated: {percent(start[1])} in round {start[0]}, {percent(end[1])} in round {end[0]}.")
    return " ".join(parts)


def _axes(first: int, last: int) -> Iterator[Element]:
    for tick in range(0, 101, 20):
        y = _y(tick / 100)
        yield node("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", cls="grid")
        yield node("text", f"{tick} %", x=str(LEFT - 8), y=f"{y + 4:.1f}", cls="tick end")
    step = max(1, math.ceil((last - first) / MAX_TICKS))
    for number in range(first, last + 1, step):
        x = f"{_x(number, first, last):.1f}"
        yield node("text", str(number), x=x, y=str(HEIGHT - BOTTOM + 20), cls="tick middle")
    middle = f"{(LEFT + WIDTH - RIGHT) / 2:.1f}"
    yield node("text", "Round", x=middle, y=str(HEIGHT - 6), cls="tick middle")


def _federated(
    points: Sequence[tuple[int, float | None]], first: int, last: int, baselines: Sequence[float]
) -> Iterator[Element]:
    """The line, broken where a round was abandoned, with a dot per round and a ring around the best."""
    known = [(_x(number, first, last), _y(accuracy), accuracy) for number, accuracy in points if accuracy is not None]
    if not known:
        return
    path, pen = [], "M"
    for number, accuracy in points:
        if accuracy is None:
            pen = "M"
            continue
        path.append(f"{pen}{_x(number, first, last):.1f} {_y(accuracy):.1f}")
        pen = "L"
    yield node("path", d="".join(path), cls="line federated")
    if len(points) <= MAX_DOTS:
        for x, y, accuracy in known:
            dot = node("title", percent(accuracy))
            yield node("circle", dot, cx=f"{x:.1f}", cy=f"{y:.1f}", r="4", cls="dot")
    x, y, best = max(known, key=lambda point: point[2])
    yield node("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="8", cls="ring")
    # Its label is above it, or below if a baseline crosses the space above.
    occupied = y < TOP + 24 or any(8 < y - line < 30 for line in baselines)
    yield node(
        "text", f"best {percent(best)}", x=f"{x:.1f}", y=f"{y + 24 if occupied else y - 14:.1f}", cls="best middle"
    )


def _labels(ends: Sequence[tuple[str, float, str]]) -> Iterator[Element]:
    """A label to the right of each line's end, moved apart where lines are close, with a thin leader line."""
    placed: list[float] = []
    order = sorted(ends, key=lambda end: end[1])
    for _, y, _ in order:
        placed.append(max(y, placed[-1] + LINE_HEIGHT) if placed else y)
    # Labels below the bottom of the chart are moved up again.
    foot = HEIGHT - BOTTOM
    for place in range(len(placed) - 1, -1, -1):
        limit = foot if place == len(placed) - 1 else placed[place + 1] - LINE_HEIGHT
        placed[place] = min(placed[place], limit)
    edge = WIDTH - RIGHT
    for (text, y, style), target in zip(order, placed, strict=True):
        yield node("path", d=f"M{edge} {y:.1f}L{edge + 14} {target:.1f}", cls=f"leader {style}")
        yield node("text", text, x=str(edge + 20), y=f"{target + 4:.1f}", cls=f"label {style}")
