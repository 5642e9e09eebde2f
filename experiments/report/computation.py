"""The report's last parts: how the figures were computed, what that cost, and how to get the same again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element

from ...base.html import Child, count, data_size, definitions, node, percent, scroll, section, table
from .record import DemoReport

STAGES = {  # of the extraction, in words
    "decode": "read and decode the video",
    "keyframes": "choose the keyframes",
    "prepare": "resize the keyframes",
    "vision": "encode the image",
    "caption": "write the caption",
    "embed": "encode image and caption together",
    "cnn": "encode the motion",
    "clip": "encode the image and find a caption",
    "words": "encode the caption",
}
DRAWN_CLIPS = 3  # of the drawing that shows how clips overlap


def computation(report: DemoReport) -> Element | None:
    """The steps of a run with their sizes and times; None when nothing was measured."""
    if report.ms_per_clip is None and not report.stages_ms and report.bytes_per_silo_round is None:
        return None
    return section(
        "How it was computed",
        node(
            "div",
            node("ol", *(node("li", *step) for step in _steps(report)), cls="steps"),
            definitions(list(_facts(report))),
            cls="split",
        ),
        node("h3", "Time per clip") if report.stages_ms else None,
        _times(report) if report.stages_ms else None,
    )


def _steps(report: DemoReport) -> Iterator[tuple[Child, ...]]:
    yield (
        node("strong", "In each silo, frozen networks turn every clip into an embedding. "),
        "They choose keyframes, write a caption and encode image, caption and motion. They are the same in all silos "
        "and are not trained.",
    )
    yield (
        node("strong", "Each silo trains a small classifier on its embeddings. "),
        f"Training: {report.settings['local training']}." if "local training" in report.settings else None,
    )
    yield (
        node("strong", "Only the classifier’s parameters and a few counts leave the silo. "),
        "Videos, labels of clips, captions and embeddings stay.",
    )
    yield (
        node("strong", "The coordinator averages the parameters and sends the result back. "),
        f"That is a round; this run had {count(len(report.rounds), 'round')}.",
    )


def _facts(report: DemoReport) -> Iterator[tuple[str, Child]]:
    if report.head_parameters is not None:
        yield "Parameters trained and sent", f"{report.head_parameters:,}"
    if report.extractor_parameters is not None:
        yield "Parameters frozen, never sent", f"{report.extractor_parameters:,}"
    if report.head_parameters is not None and report.extractor_parameters:
        saved = 1 - report.head_parameters / (report.head_parameters + report.extractor_parameters)
        yield "Saved against sending the whole model", percent(saved)
    if report.bytes_per_silo_round is not None:
        size = report.bytes_per_silo_round
        yield "Traffic per silo and round, both ways", data_size(size)
        yield "The same in bytes", f"{size:,}"


def _times(report: DemoReport) -> Element:
    """The time per clip with its explanation, next to the table of stages."""
    return node("div", node("div", *_time_per_clip(report)), _stages(report), cls="split")


def _time_per_clip(report: DemoReport) -> Iterator[Element]:
    whole, each = sum(report.stages_ms.values()), report.ms_per_clip
    if each is None:
        return
    yield node("p", f"{each:.1f}\N{NO-BREAK SPACE}ms", cls="figure")
    if whole <= each:
        yield node("p", f"from one finished clip to the next, on average; its stages take {whole:.1f} ms of it.")
        return
    yield node(
        "p",
        f"from one finished clip to the next, on average, although the stages of a clip add up to {whole:.1f} ms. "
        "Both are right, because clips overlap: while one is in the networks, the next ones are already being decoded.",
    )
    yield _overlap(report.stages_ms, each)


def _stages(report: DemoReport) -> Element:
    whole = sum(report.stages_ms.values())
    rows: list[Sequence[Child]] = [["Stage", "Time", "Share"]]
    for stage, ms in report.stages_ms.items():
        meter = node("span", node("span", cls="plain", style=f"width:{100 * ms / (whole or 1):.1f}%"), cls="track")
        name = node("span", stage, node("small", STAGES[stage])) if stage in STAGES else stage
        rows.append([name, f"{ms:.1f} ms", node("span", percent(ms / (whole or 1)), meter, cls="meter")])
    rows.append(["sum", f"{whole:.1f} ms", ""])
    return scroll(table(rows, cls="stages"), "time of the extraction by stage")


def _overlap(stages: Mapping[str, float], each: float) -> Element:
    """Bars of three clips, each beginning when the clip before it is one interval along."""
    whole = sum(stages.values())
    span = whole + (DRAWN_CLIPS - 1) * each
    rows = []
    for clip in range(DRAWN_CLIPS):
        parts = [node("span", style=f"width:{100 * ms / whole:.2f}%", title=name) for name, ms in stages.items()]
        place = f"margin-left:{100 * clip * each / span:.2f}%;width:{100 * whole / span:.2f}%"
        rows.append(node("div", node("span", f"clip {clip + 1}"), node("div", node("div", *parts, style=place))))
    words = f"Three clips in the stages at the same time, {each:.1f} ms apart; each takes {whole:.1f} ms."
    return node("div", *rows, cls="overlap", role="img", aria_label=words)


def reproduction(report: DemoReport) -> Element | None:
    """The command, and everything that the figures depend on; None when nothing is known."""
    seeds = {f"seed: {name}": str(value) for name, value in report.seeds.items()}
    blocks = [("Settings", {**report.settings, **seeds}), ("Bundle", report.bundle), ("Versions", report.versions)]
    if not report.command and not any(facts for _, facts in blocks):
        return None
    return section(
        "How to get the same again",
        _command(report.command) if report.command else None,
        node(
            "p",
            "The seeds fix the clips, the splits and the training. With the versions below, the accuracies are the "
            "same on the same kind of processor; another one rounds differently, which can change a clip or two.",
            cls="muted",
        ),
        node(
            "div",
            *(node("div", node("h3", title), definitions(_values(facts))) for title, facts in blocks if facts),
            cls="split three",
        ),
    )


def _values(facts: Mapping[str, str]) -> list[tuple[str, Child]]:
    return [(name, node("code", value) if name == "fingerprint" else value) for name, value in facts.items()]


def _command(command: str) -> Element:
    """The command line, which breaks between its options only."""
    parts = re.split(r" (?=--)", command)
    words = [node("span", part) for part in parts]
    for word in words[:-1]:
        word.tail = " "
    return node("pre", node("code", *words), tabindex="0", role="region", aria_label="command")
