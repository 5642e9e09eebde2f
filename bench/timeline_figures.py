"""Figures of timelines: frame-wise accuracy and segment F1 against the truth, and how both are made of windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flamest.agent.answers import UNKNOWN, Answers
from flamest.agent.timeline.events import EventBuilder, TimelineEvent
from flamest.agent.timeline.smoothing import Smoothing
from flamest.agent.timeline.windows import WindowPlan
from flamest.fedproto.model_file import ModelFile

from .timeline_videos import Stretch, Windows

STEP_S = 0.1  # of frame-wise accuracy
IOU = 0.5


def true_stretches(truth: Sequence[Stretch], model: ModelFile) -> list[Stretch]:
    """Return the stretches with ``unknown`` for classes that the model does not know; equal neighbours are one."""
    merged: list[Stretch] = []
    for each in truth:
        label = each.label if each.label in model.labels else UNKNOWN
        if merged and merged[-1].label == label:
            merged[-1] = Stretch(label, merged[-1].start_s, each.end_s)
        else:
            merged.append(Stretch(label, each.start_s, each.end_s))
    return merged


def timeline(
    model: ModelFile, windows: Windows, smoothing: Smoothing | None, plan: WindowPlan, threshold: float | None = None
) -> list[Stretch]:
    """Return the events of embedded windows."""
    answers = Answers(model, threshold=threshold, threads=1)
    builder, events = EventBuilder(answers, smoothing, plan), list[TimelineEvent]()
    for stretch, probability in zip(windows.stretches, answers.probabilities(windows.x), strict=True):
        events += builder.add(stretch, probability)
    events += builder.end()
    return [Stretch(event.label, event.start_s, event.end_s) for event in events]


def frame_accuracy(found: Sequence[Stretch], truth: Sequence[Stretch]) -> float:
    """Return the share of the video, in steps of 0.1 s, that has the true label."""
    times = np.arange(STEP_S / 2, truth[-1].end_s, STEP_S)
    return float(np.mean([one == other for one, other in zip(_at(found, times), _at(truth, times), strict=True)]))


def segment_f1(found: Sequence[Stretch], truth: Sequence[Stretch]) -> float:
    """Return the F1 of segments: one is found if one of its label overlaps it with an IoU of 0.5 or more."""
    left, hits = list(truth), 0
    for each in found:
        best = max((other for other in left if other.label == each.label), key=lambda o: _iou(each, o), default=None)
        if best is not None and _iou(each, best) >= IOU:
            left.remove(best)
            hits += 1
    return 2 * hits / (len(found) + len(truth))


def _at(stretches: Sequence[Stretch], times: np.ndarray) -> list[str]:
    starts = np.array([each.start_s for each in stretches])
    numbers = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, len(stretches) - 1)
    return [stretches[number].label if times[k] < stretches[number].end_s else "" for k, number in enumerate(numbers)]


def _iou(one: Stretch, other: Stretch) -> float:
    shared = min(one.end_s, other.end_s) - max(one.start_s, other.start_s)
    return max(0.0, shared) / (max(one.end_s, other.end_s) - min(one.start_s, other.start_s))
