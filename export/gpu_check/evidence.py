"""The evidence that claims are judged by: the outputs of steps. A claim, and the decision on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .plan import GpuCheckRequest
from .step import Step

UNREADABLE = "its evidence cannot be read"
Verdict = Literal["proved", "refuted", "not tested"]


@dataclass(frozen=True)
class Decision:
    """The verdict on a claim: ``why`` for a person, ``evidence`` as figures."""

    verdict: Verdict
    why: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Results of the steps. ``gpu``: its name."""

    request: GpuCheckRequest
    gpu: str
    steps: Mapping[str, Step]

    @property
    def dry(self) -> bool:
        return self.request.dry

    def ok(self, name: str) -> bool:
        """True when the step ran and succeeded."""
        return name in self.steps and self.steps[name].ok

    def output(self, name: str) -> Mapping[str, Any]:
        """The step's JSON object; empty when it did not succeed."""
        return self.steps[name].output if self.ok(name) else {}

    def error(self, name: str) -> Mapping[str, Any]:
        """Code, message and fix of the error that the step ended with; empty for none."""
        found = self.steps[name].output.get("error", {}) if name in self.steps else {}
        return found if isinstance(found, dict) else {}

    def missing(self, name: str) -> str:
        """The reason why the step has no result, for a person."""
        step = self.steps.get(name)
        if step is None:
            return f"step '{name}' did not run"
        if step.skipped:
            return f"step '{name}': {step.problem}"
        if step.ok:
            return f"step '{name}' ended without a result"
        found = self.error(name).get("message") or step.problem or f"exit code {step.exit_code}"
        return f"step '{name}' failed: {str(found).splitlines()[0]}"

    def named(self, ending: str) -> Iterable[tuple[str, Step]]:
        """Steps of every bundle, as (precision, step): ``named("engines")``."""
        for name, step in self.steps.items():
            if name.endswith(f": {ending}"):
                yield name.removesuffix(f": {ending}"), step


@dataclass(frozen=True)
class Claim:
    """A statement about the machine. ``required``: refuted, the report is not ok.

    ``in_dry``: the stand-ins of a dry run can decide it. ``advice``: what to do when it is refuted.
    """

    key: str
    statement: str
    decide: Callable[[Evidence], Decision]
    advice: str
    required: bool = False
    in_dry: bool = False


def decide(claim: Claim, evidence: Evidence) -> Decision:
    """The decision on a claim; stand-ins decide nothing that only hardware can show."""
    found = _judge(claim, evidence)
    if evidence.dry and not claim.in_dry and UNREADABLE not in found.why:
        return Decision("not tested", "a dry run: stand-ins show nothing about hardware")
    return found


def _judge(claim: Claim, evidence: Evidence) -> Decision:
    try:
        return claim.decide(evidence)
    except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        # Steps ended in 0 with an output that has another form: the report says so, and the other claims are decided.
        return Decision("not tested", f"{UNREADABLE} ({type(error).__name__}: {error})")


def proved(why: str, **evidence: Any) -> Decision:
    return Decision("proved", why, evidence)


def refuted(why: str, **evidence: Any) -> Decision:
    return Decision("refuted", why, evidence)


def untested(why: str, **evidence: Any) -> Decision:
    return Decision("not tested", why, evidence)
