"""The paper's main claims, tested: each a difference over the seeds with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from .features import FLAMEST, READY
from .inputs import ExperimentInputs
from .jobs import Job, Results, RunResult
from .paper_tables import MU
from .table_specs import seeded
from .tables import Estimate, estimate, paired


class Finding(msgspec.Struct, frozen=True):
    """A claim and its outcome."""

    claim: str
    holds: bool | None  # of the means; None: not measured
    clear: bool  # the whole interval lies on one side of the bound
    value: Estimate | None  # points, or percent
    text: str


@dataclass(frozen=True)
class Bound:
    """The bound of a claim: at least ``value``, or below it."""

    value: float
    below: bool = False

    def holds(self, number: float) -> bool:
        return (number < self.value) is self.below


def finding_jobs(inputs: ExperimentInputs) -> list[Job]:
    """The runs of the claims; Tables 2 and 5 contain all of them too."""
    return [job for jobs in _sides(inputs).values() for job in jobs]


def findings(inputs: ExperimentInputs, results: Results) -> tuple[Finding, ...]:
    """Every claim, from the last round's accuracies of the seeds that both sides have."""
    sides = _sides(inputs)

    def accuracies(name: str) -> dict[int, float]:
        found = ((job.seed, results[job]) for job in sides.get(name, ()))
        return {seed: 100 * run.last for seed, run in found if isinstance(run, RunResult)}

    def difference(claim: str, left: str, right: str, bound: Bound) -> Finding:
        ours, theirs = accuracies(left), accuracies(right)
        both = sorted(ours.keys() & theirs.keys())
        value = paired([ours[seed] for seed in both], [theirs[seed] for seed in both])
        return _finding(claim, value, bound, " points", inputs.settings.seeds)

    main = estimate(list(accuracies("BLIP+Slow").values()))
    return (
        difference("BLIP+Slow is at least 5 points above Slow", "BLIP+Slow", "Slow", Bound(5)),
        difference("BLIP+Slow is at least 5 points above BLIP", "BLIP+Slow", "BLIP", Bound(5)),
        _finding("BLIP+Slow reaches 95 %", main, Bound(95), " %", inputs.settings.seeds),
        difference("BLIP text only is below BLIP", "text", "BLIP", Bound(0, below=True)),
        difference("Non-IID is below IID", "Non-IID", "BLIP+Slow", Bound(0, below=True)),
        difference(f"FedProx (mu={MU}) is not below FedAvg on Non-IID", "FedProx", "Non-IID", Bound(0)),
    )


def _sides(inputs: ExperimentInputs) -> dict[str, tuple[Job, ...]]:
    replace = msgspec.structs.replace
    skewed = inputs.job(FLAMEST, partition=inputs.dirichlet())
    prox = replace(skewed, strategy=replace(skewed.strategy, name="fedprox", mu=MU))
    wanted = {
        "BLIP+Slow": inputs.job(FLAMEST),
        "Slow": inputs.job("slow"),
        "BLIP": inputs.job("blip"),
        "text": inputs.job("blip-text"),
        "Non-IID": skewed,
        "FedProx": prox,
    }
    return {name: seeded(inputs, job) for name, job in wanted.items() if inputs.data.state(job.extractor) == READY}


def _finding(claim: str, value: Estimate | None, bound: Bound, unit: str, seeds: int) -> Finding:
    if value is None:
        return Finding(claim, None, False, None, "not measured")
    half = value.interval or 0.0
    holds = bound.holds(value.mean)
    clear = value.interval is not None and all(
        bound.holds(end) == holds for end in (value.mean - half, value.mean + half)
    )
    word = "came out" if holds else "did not come out"
    sign = "+" if unit == " points" and value.mean >= 0 else ""
    text = f"{word}: {sign}{value}{unit}"
    if value.count < seeds:
        text += f" over {value.count} of {seeds} seeds, for which both sides were measured"
    if value.interval is None:
        text += "; one seed: no interval"
    elif not clear:
        text += f"; not clear: the interval crosses {bound.value:g}"
    return Finding(claim, holds, clear, value, text)
