"""Findings of a `doctor`: checks with their outcome, and the fix of each problem."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .console import say

State = Literal["ok", "warn", "wrong"]


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    check: str
    state: State
    detail: str
    fix: str = ""


def show_findings(findings: Iterable[Finding]) -> None:
    """Print a line for each finding, and its fix below."""
    for finding in findings:
        say(f"{finding.state:6} {finding.check:14} {finding.detail}")
        if finding.fix:
            say(f"{'':21} fix: {finding.fix}")
