"""The demo's report: one HTML page without scripts and without anything to load.

The page is a tree of elements, written by the standard library's serialiser, so that all text (labels, captions,
file names) is escaped; only the style sheet is written unchanged.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from ...base.files import write_atomic
from .chart import Baseline, accuracy_chart
from .html import Child, count, data_size, definitions, duration, meter_bar, node, percent, scroll, table, timestamp
from .style import STYLE

MAX_COLUMNS = 12  # classes that the table of silos shows one by one


@dataclass(frozen=True)
class RoundAccuracy:
    """Accuracy of the global model after a round."""

    round: int
    accuracy: float | None  # share of the test clips, 0 … 1; None when the round was abandoned


@dataclass(frozen=True)
class SiloReport:
    """Clips and local accuracy of one silo."""

    name: str
    clips: int  # of its training set
    clips_per_class: Mapping[str, int] = field(default_factory=dict)  # missing labels count 0
    local_accuracy: float | None = None  # of a model trained on this silo alone, 0 … 1


@dataclass(frozen=True)
class ClipPrediction:
    """Prediction of the final model for one held-out clip."""

    video: str  # file name
    labels: tuple[tuple[str, float], ...]  # (label, probability 0 … 1), most probable first
    truth: str | None = None  # the clip's own label
    caption: str | None = None
    frames: tuple[bytes, ...] = ()  # PNG or JPEG files, in time order


@dataclass(frozen=True)
class DemoReport:
    """Content of the page. None and empty values were not measured and are not shown."""

    labels: tuple[str, ...]
    chance: float  # accuracy of guessing, 0 … 1
    rounds: tuple[RoundAccuracy, ...]  # in order
    silos: tuple[SiloReport, ...]
    test_clips: int
    test_groups: int | None = None  # scenes or people that no silo trained on
    centralised_accuracy: float | None = None  # one model on all silos' clips together
    metadata_accuracy: float | None = None  # a classifier that sees frame size, length and bytes only
    bytes_per_silo_round: int | None = None  # sent and received by one silo in one round
    head_parameters: int | None = None  # trained and sent
    extractor_parameters: int | None = None  # frozen, never sent
    ms_per_clip: float | None = None  # extraction, wall milliseconds
    stages_ms: Mapping[str, float] = field(default_factory=dict)  # the same by stage
    seconds: float | None = None  # the whole run
    created: str = ""  # UTC, RFC 3339
    prediction: ClipPrediction | None = None
    settings: Mapping[str, str] = field(default_factory=dict)  # as shown: "local epochs" -> "5"
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def last(self) -> float | None:
        """Accuracy after the last closed round, the headline."""
        return next((r.accuracy for r in reversed(self.rounds) if r.accuracy is not None), None)

    @property
    def best(self) -> RoundAccuracy | None:
        """The round with the highest accuracy; the first if several are equal."""
        closed = [r for r in self.rounds if r.accuracy is not None]
        return max(closed, key=lambda r: r.accuracy or 0.0, default=None)

    @property
    def local_accuracy(self) -> float | None:
        """Mean of the silos' local-only accuracies."""
        known = [silo.local_accuracy for silo in self.silos if silo.local_accuracy is not None]
        return sum(known) / len(known) if known else None


def write_report(path: Path, report: DemoReport) -> None:
    """Write ``report`` as one HTML file to ``path``, whole or not at all. Raises StorageError."""
    page = node(
        "html",
        node(
            "head",
            node("meta", charset="utf-8"),
            node("meta", name="viewport", content="width=device-width, initial-scale=1"),
            node("meta", name="color-scheme", content="light dark"),
            node("title", "FLAMeST demo report"),
            node("style", STYLE),
        ),
        node("body", node("main", _header(report), *_sections(report))),
        lang="en",
    )
    html = "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html") + "\n"
    # A file name that is not UTF-8 contains lone surrogates, which cannot be encoded.
    write_atomic(Path(path), html.encode("utf-8", errors="replace"))


def _header(report: DemoReport) -> Element:
    facts = [
        count(len(report.silos), "silo"),
        f"{count(sum(silo.clips for silo in report.silos), 'clip')} to train on",
        f"{count(report.test_clips, 'clip')} to test on",
        count(len(report.labels), "class", "classes"),
        count(len(report.rounds), "round"),
    ]
    if report.seconds is not None:
        facts.append(f"{duration(report.seconds)} in all")
    stamp = node("time", timestamp(report.created), datetime=report.created)
    return node(
        "header",
        node("p", "FLAMeST demo report", cls="eyebrow"),
        node("h1", f"{count(len(report.silos), 'silo')}, one action recogniser, no shared video"),
        node("ul", *(node("li", fact) for fact in facts), cls="facts"),
        node("p", "Finished ", stamp, cls="muted") if report.created else None,
    )


def _sections(report: DemoReport) -> Iterator[Element]:
    yield _results(report)
    yield _rounds(report)
    yield _silos(report)
    if report.prediction is not None:
        yield _prediction(report.prediction)
    if report.ms_per_clip is not None or report.stages_ms or report.bytes_per_silo_round is not None:
        yield _costs(report)
    if report.settings or report.seeds or report.versions:
        yield _how_made(report)


def _section(title: str, *children: Child) -> Element:
    return node("section", node("h2", title), *children)


def _results(report: DemoReport) -> Element:
    held_out = count(report.test_clips, "clip")
    if report.test_groups is not None:
        held_out += f" of {count(report.test_groups, 'group')}"
    best = report.best
    bars = [("Chance", report.chance, "plain"), ("Metadata only", report.metadata_accuracy, "plain")]
    bars += [("Local only, mean", report.local_accuracy, "plain"), ("Federated, last round", report.last, "accent")]
    if best is not None:
        bars.append((f"Federated, best (round {best.round})", best.accuracy, "accent soft"))
    bars.append(("Centralised", report.centralised_accuracy, "plain"))
    return _section(
        "Accuracy on held-out clips",
        node(
            "div",
            node(
                "div",
                node("p", percent(report.last), cls="hero"),
                node(
                    "p",
                    f"of {held_out} that no silo trained on are classified correctly after the last round",
                    cls="muted",
                ),
                node("ul", *(node("li", line) for line in _comparisons(report)), cls="verdicts"),
            ),
            node("div", *(meter_bar(name, value, kind) for name, value, kind in bars if value is not None), cls="bars"),
            cls="split",
        ),
        node(
            "p",
            "Local only: each silo trains on its own clips. Centralised: one model on all clips in one place, the "
            "federation's goal. ",
            "Metadata only: a random forest on frame size, length and bytes of the file, without frames."
            if report.metadata_accuracy is not None
            else None,
            cls="note",
        ),
    )


def _comparisons(report: DemoReport) -> Iterator[str]:
    if report.last is None:
        return
    if report.chance > 0:
        yield f"{report.last / report.chance:.1f} times chance"
    if report.centralised_accuracy:
        yield f"{report.last / report.centralised_accuracy:.2f} of the centralised model"
    if report.local_accuracy is not None:
        points = 100 * (report.last - report.local_accuracy)
        yield f"{abs(points):.1f} points {'above' if points >= 0 else 'below'} the silos on their own"


def _rounds(report: DemoReport) -> Element:
    baselines = [
        Baseline("Centralised", report.centralised_accuracy, "central"),
        Baseline("Local only, mean", report.local_accuracy, "local"),
        Baseline("Metadata only", report.metadata_accuracy, "metadata"),
        Baseline("Chance", report.chance, "chance"),
    ]
    points = [(r.round, r.accuracy) for r in report.rounds]
    rows = [("Round", "Accuracy"), *((str(r.round), percent(r.accuracy, "abandoned")) for r in report.rounds)]
    return _section(
        "Accuracy round by round",
        scroll(accuracy_chart(points, baselines), "chart of the accuracy per round", cls="chart"),
        node("details", node("summary", "The same as a table"), table(rows, cls="narrow")),
    )


def _silos(report: DemoReport) -> Element:
    shown = report.labels if len(report.labels) <= MAX_COLUMNS else ()
    head: list[Child] = ["Silo", "Clips", "Classes", *shown, "Local only"]
    most = max((n for silo in report.silos for n in silo.clips_per_class.values()), default=0) or 1
    rows: list[Sequence[Child]] = [head]
    for silo in report.silos:
        counts = [silo.clips_per_class.get(label, 0) for label in shown]
        cells = [node("span", str(n), cls="heat", style=f"--share:{n / most:.3f}") for n in counts]
        held = sum(1 for n in silo.clips_per_class.values() if n)
        rows.append([silo.name, str(silo.clips), str(held), *cells, percent(silo.local_accuracy)])
    note = node("p", "The stronger a cell's colour, the more clips of that class the silo has.", cls="note")
    return _section("Silos", scroll(table(rows), "table of the silos"), note if shown else None)


def _prediction(prediction: ClipPrediction) -> Element:
    correct = prediction.truth is not None and prediction.labels[:1] and prediction.labels[0][0] == prediction.truth
    facts: list[tuple[str, str]] = [("Clip", prediction.video)]
    if prediction.truth is not None:
        facts.append(("Its class", f"{prediction.truth} ({'correct' if correct else 'not the prediction'})"))
    if prediction.caption is not None:
        facts.append(("Caption", prediction.caption or "(empty)"))
    images = (
        node("img", src=_data_url(frame), alt=f"frame {number} of {len(prediction.frames)}")
        for number, frame in enumerate(prediction.frames, start=1)
    )
    return _section(
        "One held-out clip",
        node("div", *images, cls="frames") if prediction.frames else None,
        node(
            "div",
            definitions(facts),
            node(
                "div",
                *(
                    meter_bar(label, p, "accent" if n == 0 else "plain")
                    for n, (label, p) in enumerate(prediction.labels)
                ),
                cls="bars",
            ),
            cls="split",
        ),
    )


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(image).decode()}"


def _costs(report: DemoReport) -> Element:
    facts: list[tuple[str, str]] = []
    if report.ms_per_clip is not None:
        facts.append(("Extraction per clip", f"{report.ms_per_clip:.1f} ms"))
    if report.bytes_per_silo_round is not None:
        facts.append(("Traffic per silo and round", data_size(report.bytes_per_silo_round)))
        facts.append(("The same in bytes", f"{report.bytes_per_silo_round:,}"))
    if report.head_parameters is not None:
        facts.append(("Parameters that are sent", f"{report.head_parameters:,}"))
    if report.extractor_parameters is not None:
        facts.append(("Frozen parameters (not sent)", f"{report.extractor_parameters:,}"))
    if report.head_parameters is not None and report.extractor_parameters:
        saved = 1 - report.head_parameters / (report.head_parameters + report.extractor_parameters)
        facts.append(("Saved against sending the whole model", percent(saved)))
    whole = sum(report.stages_ms.values()) or 1.0
    rows: list[Sequence[Child]] = [["Stage", "Time per clip", "Share"]]
    for stage, ms in report.stages_ms.items():
        meter = node("span", node("span", cls="plain", style=f"width:{100 * ms / whole:.1f}%"), cls="track")
        rows.append([stage, f"{ms:.1f} ms", node("span", percent(ms / whole), meter, cls="meter")])
    stages = scroll(table(rows), "table of the extraction's stages") if report.stages_ms else None
    return _section("What it costs", node("div", definitions(facts), stages, cls="split" if report.stages_ms else ""))


def _how_made(report: DemoReport) -> Element:
    seeds = {f"seed: {name}": str(value) for name, value in report.seeds.items()}
    blocks = [("Settings", {**report.settings, **seeds}), ("Versions", report.versions)]
    return _section(
        "How to reproduce this",
        node(
            "div",
            *(node("div", node("h3", title), definitions(list(facts.items()))) for title, facts in blocks if facts),
            cls="split",
        ),
    )
