"""The labels that a person may choose from: the run's classes where they are known, and those in use."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from .records import ClassRecord


def vocabulary(run_classes: Sequence[str], clips: Counter[str]) -> list[ClassRecord]:
    """Return the run's classes in their order, then the other labels in use, the most frequent first."""
    own = [ClassRecord(label, True, clips[label]) for label in run_classes]
    known = set(run_classes)
    others = sorted((label for label in clips if label not in known), key=lambda label: (-clips[label], label))
    return [*own, *(ClassRecord(label, False, clips[label]) for label in others)]


def alias_lines(label: str, as_: str) -> str:
    """Return the lines of agent.toml that make ``label`` count as the run's class ``as_``."""
    return f"[labels.alias]\n{_toml(label)} = {_toml(as_)}\n"


def _toml(text: str) -> str:
    """Return a TOML basic string: its escapes are those of JSON, with non-ASCII letters left as they are."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
