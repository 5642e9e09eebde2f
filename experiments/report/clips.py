"""The report's two test clips: one that the model gets wrong next to one that it gets right."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from ...base.html import Child, count, definitions, image, meter_bar, node, section
from .record import ClipPrediction, DemoReport


def examples(report: DemoReport) -> Element | None:
    """Both clips with keyframes, caption, class and probabilities; None when there are none."""
    shown = [clip for clip in (report.correct, report.doubtful) if clip is not None]
    if not shown:
        return None
    return section(
        "One clip right, one wrong" if any(not clip.correct for clip in shown) else "Two test clips",
        node("p", _explain(report, shown), cls="muted"),
        node("div", *(_card(clip, report) for clip in shown), cls="split"),
    )


def _explain(report: DemoReport, shown: list[ClipPrediction]) -> str:
    which = f"of {count(report.test_clips, 'test clip')}"
    if report.wrong_clips == 0:
        return f"No clip {which} is misclassified. The least certain prediction is shown next to another one."
    if report.wrong_clips is None or len(shown) < 2:
        return "The probabilities are those of the model after the last round."
    wrong = "clip is" if report.wrong_clips == 1 else "clips are"
    return (
        f"{report.wrong_clips}\N{NO-BREAK SPACE}{wrong} misclassified {which}. The one that the model is surest of is "
        "shown next to a clip that it gets right."
    )


def _card(clip: ClipPrediction, report: DemoReport) -> Element:
    if clip.truth is None:
        verdict = None
    elif clip.correct:
        least = " (least certain)" if clip is report.doubtful else ""
        verdict = node("p", f"✓ Right{least}", cls="verdict right")
    else:
        verdict = node("p", "✗ Wrong", cls="verdict wrong")
    facts: list[tuple[str, str]] = []
    if clip.truth is not None:
        facts.append(("Its class", clip.truth))
    if clip.labels:
        facts.append(("Prediction", clip.labels[0][0]))
    if clip.caption is not None:
        facts.append(("Caption", clip.caption or "(empty)"))
    facts.append(("Clip", clip.video))
    total = len(clip.frames)
    pictures = [image(frame, f"keyframe {number} of {total}") for number, frame in enumerate(clip.frames, start=1)]
    return node(
        "div",
        verdict,
        node("div", *pictures, cls="frames") if pictures else None,
        definitions(facts),
        node("div", *_probabilities(clip), cls="bars thin"),
        cls="clip",
    )


def _probabilities(clip: ClipPrediction) -> Iterator[Element]:
    for label, probability in clip.labels:
        true = label == clip.truth
        name: Child = node("span", label, node("b", "its class", cls="badge")) if true else label
        yield meter_bar(name, probability, "accent" if true else "plain")
    if clip.truth is not None and all(label != clip.truth for label, _ in clip.labels):
        yield node("p", f"{clip.truth} is not among the {len(clip.labels)} most probable classes.", cls="note")
