"""The report's line chart: accuracy per round over the baselines.

The plot is an SVG that stretches with the page; its labels are text of the page, so that they keep their size on a
phone. Lines differ in colour, in dash and by a label at their end, so that colour alone carries no information. Where
the page is narrow, the style sheet shows the legend below the chart instead of the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from ...base.html import node, percent

HEIGHT = 300  # of the plot in CSS pixels, at any width; style.py has the same number
LINE_HEIGHT = 20  # CSS pixels, minimum distance of two labels
INSET = 2.5  # % of the plot's width, before the first round and after the last
MAX_DOTS = 30  # with more rounds there are no dots
LEADER = 16  # CSS pixels between a line's end and its label


@dataclass(frozen=True)
class Baseline:
    """A horizontal line: an accuracy (0 … 1) that is the same for all rounds."""

    name: str
    accuracy: float | None  # None: not drawn
    style: str  # class in the style sheet


@dataclass(frozen=True)
class _End:
    """The end of a line at the right edge of the plot, and its label."""

    text: str
    y: float  # % of the plot's height, from the top
    style: str


def accuracy_chart(points: Sequence[tuple[int, float | None]], baselines: Sequence[Baseline]) -> Element:
    """The chart of ``points`` (round, accuracy or None for an abandoned round), with its legend."""
    known = [(number, accuracy) for number, accuracy in points if accuracy is not None]
    drawn = [(line, line.accuracy) for line in baselines if line.accuracy is not None]
    first, last = (points[0][0], points[-1][0]) if points else (0, 1)
    ends = [_End(f"{line.name} {percent(accuracy)}", _y(accuracy), line.style) for line, accuracy in drawn]
    if known:
        ends.insert(0, _End(f"Federated {percent(known[-1][1])}", _y(known[-1][1]), "federated"))
    ends.sort(key=lambda end: end.y)
    plot = node(
        "div",
        node(
            "svg",
            *(node("path", d=f"M0 {_y(tick / 100):.2f}H100", cls="grid") for tick in range(0, 101, 20)),
            *(node("path", d=f"M0 {_y(accuracy):.2f}H100", cls=f"line {line.style}") for line, accuracy in drawn),
            *_federated(points, first, last),
            viewBox="0 0 100 100",
            preserveAspectRatio="none",
        ),
        *_ticks(first, last),
        _labels(ends),
        cls="plot",
        role="img",
        aria_label=_describe(known, drawn),
    )
    return node("div", plot, node("p", "Round", cls="axis"), _legend(ends), cls="chart")


def _x(number: int, first: int, last: int) -> float:
    """Place of a round, in % of the plot's width."""
    return INSET + (100 - 2 * INSET) * ((number - first) / (last - first) if last > first else 0.5)


def _y(accuracy: float) -> float:
    """Place of an accuracy, in % of the plot's height, from the top."""
    return 100 * (1 - min(max(accuracy, 0.0), 1.0))


def _describe(known: Sequence[tuple[int, float]], drawn: Sequence[tuple[Baseline, float]]) -> str:
    parts = [f"{line.name}: {percent(accuracy)}." for line, accuracy in drawn]
    if known:
        start, end = known[0], known[-1]
        parts.insert(0, f"Federated: {percent(start[1])} in round {start[0]}, {percent(end[1])} in round {end[0]}.")
    return " ".join(["Accuracy on the test clips after each round.", *parts])


def tick_rounds(first: int, last: int) -> list[int]:
    """At most ten rounds to number on the axis, six from round 100 on: round numbers, and the first if it fits."""
    most = 8 if last < 100 else 5
    step = next(
        scale * unit for scale in (10**power for power in range(10)) for unit in (1, 2, 5)
        if (last - first) / (scale * unit) <= most
    )  # fmt: skip
    ticks = [number for number in range(first, last + 1) if number % step == 0]
    fits = not ticks or ticks[0] - first >= 0.8 * step
    return [first, *ticks] if fits else ticks


def _ticks(first: int, last: int) -> Iterator[Element]:
    for tick in range(0, 101, 20):
        yield node("span", f"{tick}\N{NO-BREAK SPACE}%", cls="tick y", style=f"top:{_y(tick / 100):.2f}%")
    for number in tick_rounds(first, last):
        yield node("span", str(number), cls="tick x", style=f"left:{_x(number, first, last):.2f}%")


def _federated(points: Sequence[tuple[int, float | None]], first: int, last: int) -> Iterator[Element]:
    """The line, broken where a round was abandoned, with a dot per round."""
    path, pen = [], "M"
    for number, accuracy in points:
        if accuracy is None:
            pen = "M"
            continue
        path.append(f"{pen}{_x(number, first, last):.2f} {_y(accuracy):.2f}")
        pen = "L"
    if path:
        yield node("path", d="".join(path), cls="line federated")
    if len(points) <= MAX_DOTS:
        for number, accuracy in points:
            if accuracy is not None:
                place = f"M{_x(number, first, last):.2f} {_y(accuracy):.2f}h0"
                yield node("path", node("title", f"round {number}: {percent(accuracy)}"), d=place, cls="dot")


def _labels(ends: Sequence[_End]) -> Element:
    """A label to the right of each line's end, moved apart where lines are close, with a thin leader line."""
    places: list[float] = []
    for end in ends:  # from the top
        y = end.y * HEIGHT / 100
        places.append(max(y, places[-1] + LINE_HEIGHT) if places else y)
    for place in range(len(places) - 1, -1, -1):  # labels below the plot are moved up again
        limit = HEIGHT if place == len(places) - 1 else places[place + 1] - LINE_HEIGHT
        places[place] = min(places[place], limit)
    leaders = [
        node("path", d=f"M0 {end.y * HEIGHT / 100:.1f}L{LEADER} {y:.1f}", cls=f"leader {end.style}")
        for end, y in zip(ends, places, strict=True)
    ]
    return node(
        "div",
        node("svg", *leaders, viewBox=f"0 0 {LEADER} {HEIGHT}", width=str(LEADER), height=str(HEIGHT)),
        *(
            node("span", end.text, cls=f"label {end.style}", style=f"top:{y:.1f}px")
            for end, y in zip(ends, places, strict=True)
        ),
        cls="ends",
    )


def _legend(ends: Sequence[_End]) -> Element:
    def item(end: _End) -> Element:
        line = node("path", d="M0 4H32", cls=f"line {end.style}")
        return node("li", node("svg", line, viewBox="0 0 32 8", aria_hidden="true"), node("span", end.text))

    return node("ul", *(item(end) for end in ends), cls="legend")
