"""Bounds on what one side of the wire may ask of the other: sizes, counts, times, names and figures.

The one place for them. Settings of a run, heads, tasks, models and model files are checked against these, on the silo
when they arrive and on the coordinator when they are configured: a coordinator cannot be set up beyond what a silo
accepts. Each is far above what an honest run needs (docs/decisions/024-bounds-on-what-a-coordinator-asks.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MAX_PARAMETERS = 16 << 20  # of a head: 64 MiB of float32; training needs about ten times that
MAX_LAYERS = 16  # hidden layers of a head
MAX_WIDTH = 1 << 16  # of a layer, of the features, of a block of them
MAX_BLOCKS = 16  # modalities in a row of features
# Values of all layers over one batch: 256 MiB of float32, of which a training step holds a few copies.
MAX_ACTIVATIONS = 1 << 26

MAX_SETTINGS_BYTES = 1 << 20  # a run's settings as they are sent
MAX_RUN_NAME = 128  # characters
MAX_FINGERPRINT = 256  # characters; a bundle's has 64
MAX_LABELS = 10_000
MAX_LABEL = 256  # characters

MAX_ROUNDS = 100_000  # of a run
MAX_ROUND_NUMBER = 10_000_000  # abandoned rounds have numbers too
MAX_EPOCHS = 1_000  # of a round
MAX_BATCH = 1 << 20  # rows
MAX_SILOS = 100_000
MAX_SEED = (1 << 63) - 1
MAX_RATE = 1_000.0  # learning rate, weight decay
MAX_TERM = 1e6  # mu and alpha: weights of a term in a silo's loss
MAX_FACTOR = 1e9  # any other number of a strategy
MAX_DEADLINE_S = 7 * 86400.0  # a round's length

POLL_S = (0.1, 300.0)  # shortest and longest pause until a silo asks again; others are taken as the nearer of the two
MAX_SUBJECTS = 256  # models of one final evaluation
MAX_WEIGHT = 1e9  # largest value of a model; an absurd learning rate of 1,000 makes 10^6 in a run
MAX_LOSS = 1e9  # mean cross-entropy, nats; more is no model that learned anything
MAX_REASON = 500  # characters of the other side's text in a message, a log line or the status


def number_problems(name: str, value: float, least: float, most: float) -> list[str]:
    """Return what is wrong with a number that must be from ``least`` to ``most``; the value itself is not shown."""
    if least <= value <= most:  # False for NaN
        return []
    return [f"{name}: expected {least:,} to {most:,}"]


def positive_problems(name: str, value: float, most: float) -> list[str]:
    """Return what is wrong with a number that must be more than 0 and at most ``most``."""
    if 0 < value <= most:
        return []
    return [f"{name}: expected more than 0 and at most {most:,}"]


def name_problems(name: str, value: str, most: int) -> list[str]:
    """Return what is wrong with a text that must have 1 to ``most`` printable characters, none of them around it."""
    if not value.isprintable():
        return [f"{name}: characters that cannot be printed, {shortened(ascii(value), 80)}"]
    if not value or value != value.strip() or len(value) > most:
        return [f"{name}: expected 1 to {most} characters without spaces around them"]
    return []


def label_problems(labels: Sequence[str]) -> list[str]:
    """Return what is wrong with class names: each one printable, none blank, none twice, none too long."""
    if len(labels) > MAX_LABELS:
        return [f"labels: {len(labels)}, expected at most {MAX_LABELS:,}"]
    wrong = [problem for label in labels for problem in _label_problems(label)][:1]
    if len(set(labels)) != len(labels):
        wrong.append("labels: one is there twice")
    return wrong


def _label_problems(label: str) -> list[str]:
    if not label.isprintable():
        return name_problems("labels", label, MAX_LABEL)
    if not label.strip() or len(label) > MAX_LABEL:
        return [f"labels: expected 1 to {MAX_LABEL} characters, not all of them spaces"]
    return []


def shortened(text: str, most: int = MAX_REASON) -> str:
    """Return ``text``, or its beginning and "…" when it is longer than ``most`` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def is_loss(value: float) -> bool:
    """Return True for a mean cross-entropy that may be reported."""
    return math.isfinite(value) and 0 <= value <= MAX_LOSS
