"""The report's first parts: the headline, what it is compared with, each silo's gain, and the rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from ...base.html import Child, count, meter_bar, node, percent, scroll, section, table
from .chart import Baseline, accuracy_chart
from .record import DemoReport, SiloReport

FEW_CLIPS = 1000  # with more test clips, one clip is less than the accuracy's last digit


def headline(report: DemoReport) -> Element:
    """Accuracy after the last round, next to the accuracies that it is compared with."""
    meaning = [f"of {count(report.test_clips, 'held-out clip')} are classified correctly after the last round."]
    if report.test_groups is not None:
        groups = count(report.test_groups, "group")
        meaning.append(f"They come from {groups} (scenes or people) that no silo trained on.")
    if 0 < report.test_clips <= FEW_CLIPS:
        meaning.append(f"One clip is {100 / report.test_clips:.1f} points.")
    return section(
        "Accuracy on held-out clips",
        node(
            "div",
            node(
                "div",
                node("p", percent(report.last), cls="hero"),
                node("p", " ".join(meaning), cls="muted"),
                node("ul", *(node("li", line) for line in _comparisons(report)), cls="verdicts"),
            ),
            node("div", *_bars(report), cls="bars"),
            cls="split",
        ),
    )


def _comparisons(report: DemoReport) -> Iterator[str]:
    if report.last is None:
        return
    if report.local_accuracy is not None:
        points = 100 * (report.last - report.local_accuracy)
        yield f"{abs(points):.1f} points {'above' if points >= 0 else 'below'} the silos on their own"
    if report.centralised_accuracy:
        yield f"{report.last / report.centralised_accuracy:.2f} of the accuracy of one model on all clips"
    if report.chance > 0:
        yield f"{report.last / report.chance:.1f} times chance"


def _bars(report: DemoReport) -> Iterator[Element]:
    classes = count(len(report.labels), "class", "classes")
    best = report.best
    peak = ""
    if best is not None and best.accuracy != report.last:
        peak = f"; at its best {percent(best.accuracy)}, after round {best.round}"
    for name, value, kind, note in (
        ("Federated", report.last, "accent", f"the model that the silos trained together, after the last round{peak}"),
        ("Centralised", report.centralised_accuracy, "plain", "one model trained on all clips in one place: the goal"),
        ("Alone, mean", report.local_accuracy, "plain", "each silo trained on its own clips only"),
        ("Metadata only", report.metadata_accuracy, "plain", "from frame size, length and bytes, without the frames"),
        ("Chance", report.chance, "plain", f"a guess among {classes}"),
    ):
        if value is not None:
            yield meter_bar(name, value, kind, note)


def silos(report: DemoReport) -> Element:
    """Each silo's gain, and the clips that it has."""
    last = report.last
    alone = [(silo, silo.local_accuracy) for silo in report.silos if silo.local_accuracy is not None]
    if last is None or not alone:
        return section("The silos", *_holdings(report))
    return section(
        "What each silo gains by joining", *_gains(alone, last), node("h3", "What each silo holds"), *_holdings(report)
    )


def _gains(measured: Sequence[tuple[SiloReport, float]], last: float) -> Iterator[Element]:
    """A row per silo: the accuracy of its own model and of the federated one, on the same clips."""
    losing = sum(1 for _, alone in measured if alone > last)
    verdict = "Every silo gains" if losing == 0 else f"{count(losing, 'silo loses', 'silos lose')} by joining"
    if losing == 0 and any(alone == last for _, alone in measured):
        verdict = "No silo loses"
    yield node(
        "p",
        f"{verdict}. Both models are tested on the same held-out clips: the one that a silo trains alone, and the one "
        "that all silos train together. The gain is in percentage points.",
        cls="muted",
    )
    key: list[Child] = [node("i", cls="plain"), "alone ", node("i", cls="accent"), "gained by joining "]
    if losing:
        key += [node("i", cls="loss"), "lost"]
    rows = [
        _row(
            node("th", "Silo", scope="col", role="columnheader"),
            node("td", *key, cls="graph", aria_hidden="true"),
            *(node("th", name, scope="col", role="columnheader") for name in ("Alone", "Federated", "Gain")),
        ),
        *(_gain_row(silo, alone, last) for silo, alone in measured),
    ]
    yield node(
        "table",
        node("thead", rows[0], role="rowgroup"),
        node("tbody", *rows[1:], role="rowgroup"),
        cls="gains",
        role="table",
    )


def _row(*cells: Element) -> Element:
    # On a phone the style sheet lays rows out as grids: the roles keep it a table for assistive technology.
    return node("tr", *cells, role="row")


def _gain_row(silo: SiloReport, alone: float, together: float) -> Element:
    held = sum(1 for clips in silo.clips_per_class.values() if clips)
    classes = f" of {held} {'class' if held == 1 else 'classes'}" if held else ""
    low, high = sorted((alone, together))
    parts = [
        node("span", cls="plain", style=f"width:{100 * low:.1f}%"),
        node("span", cls="accent" if together >= alone else "loss", style=f"width:{100 * (high - low):.1f}%"),
    ]
    return _row(
        node("th", silo.name, node("small", f"{count(silo.clips, 'clip')}{classes}"), scope="row", role="rowheader"),
        node("td", node("span", *parts, cls="track"), cls="graph", aria_hidden="true"),
        node("td", percent(alone), role="cell"),
        node("td", percent(together), role="cell"),
        node("td", _signed(together - alone), cls="gain", role="cell"),
    )


def _signed(difference: float) -> str:
    """Percentage points with their sign: ``+36.8``."""
    points = round(100 * difference, 1)
    sign = "" if points == 0 else "+" if points > 0 else "\N{MINUS SIGN}"
    return f"{sign}{abs(points):.1f}"


def rounds(report: DemoReport) -> Element:
    """The chart of the rounds, and the same as a table."""
    baselines = [
        Baseline("Centralised", report.centralised_accuracy, "central"),
        Baseline("Alone, mean", report.local_accuracy, "local"),
        Baseline("Metadata only", report.metadata_accuracy, "metadata"),
        Baseline("Chance", report.chance, "chance"),
    ]
    points = [(r.round, r.accuracy) for r in report.rounds]
    rows = [("Round", "Accuracy"), *((str(r.round), percent(r.accuracy, "abandoned")) for r in report.rounds)]
    return section(
        "Accuracy round by round",
        accuracy_chart(points, baselines),
        node("details", node("summary", "The same as a table"), table(rows, cls="narrow")),
    )


def _holdings(report: DemoReport) -> Iterator[Element]:
    """A strip of the classes per silo, and the same as a table."""
    most = max((n for silo in report.silos for n in silo.clips_per_class.values()), default=0) or 1
    rows: list[Sequence[Child]] = [["Class", *(silo.name for silo in report.silos)]]
    rows.append(["all classes", *(str(silo.clips) for silo in report.silos)])
    rows += [[label, *(str(silo.clips_per_class.get(label, 0)) for silo in report.silos)] for label in report.labels]
    yield node(
        "p",
        f"A cell is one of the {count(len(report.labels), 'class', 'classes')}: the stronger its colour, the more "
        f"clips of that class the silo has (at most {most}). A silo trains on most of its clips and tests each "
        "round's model on the others.",
        cls="muted",
    )
    yield node("div", *(_strip(silo, report.labels, most) for silo in report.silos), cls="strips")
    clips = scroll(table(rows), "clips of each silo by class")
    yield node("details", node("summary", "The same as a table"), clips)


def _strip(silo: SiloReport, labels: Sequence[str], most: int) -> Element:
    counts = [silo.clips_per_class.get(label, 0) for label in labels]
    held = sum(1 for number in counts if number)
    words = f"{count(silo.clips, 'clip')}, {held} of {count(len(labels), 'class', 'classes')}"
    cells = [
        node("i", title=f"{label}: {count(number, 'clip')}", style=f"--share:{number / most:.2f}")
        for label, number in zip(labels, counts, strict=True)
    ]
    return node(
        "div",
        node("p", node("strong", silo.name), node("span", words)),
        node("div", *cells, cls="strip" if len(labels) <= 40 else "strip dense", role="img", aria_label=words),
    )
