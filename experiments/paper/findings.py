"""Did the paper's order come out? Each claim as a difference over the seeds, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from .estimates import Estimate, estimate, paired
from .features import FLAMEST, READY
from .jobs import Job, Results, RunResult
from .plans import MU, seeded
from .settings import Context


class Finding(msgspec.Struct, frozen=True):
    claim: str
    holds: bool | None  # of the means; None: not measured
    clear: bool  # the whole interval is on the claim's side
    value: Estimate | None  # points, or percent
    text: str


@dataclass(frozen=True)
class Bound:
    """What a claim asks of a number: ``value`` or more, or less than it."""

    value: float
    below: bool = False

    def holds(self, number: float) -> bool:
        return (number < self.value) is self.below


def finding_jobs(context: Context) -> list[Job]:
    """The runs behind the claims; all of them stand in Tables 2 and 5 too."""
    return [job for jobs in _sides(context).values() for job in jobs]


def findings(context: Context, results: Results) -> tuple[Finding, ...]:
    """Each claim, from the last round's accuracies of the seeds that both sides have."""
    sides = _sides(context)

    def accuracies(name: str) -> dict[int, float]:
        found = ((job.seed, results[job]) for job in sides.get(name, ()))
        return {seed: 100 * run.last for seed, run in found if isinstance(run, RunResult)}

    def difference(claim: str, left: str, right: str, bound: Bound) -> Finding:
        ours, theirs = accuracies(left), accuracies(right)
        both = sorted(ours.keys() & theirs.keys())
        value = paired([ours[seed] for seed in both], [theirs[seed] for seed in both])
        return _judged(claim, value, bound, " points", context.settings.seeds)

    main = estimate(list(accuracies("BLIP+Slow").values()))
    return (
        difference("BLIP+Slow is at least 5 points above Slow", "BLIP+Slow", "Slow", Bound(5)),
        difference("BLIP+Slow is at least 5 points above BLIP", "BLIP+Slow", "BLIP", Bound(5)),
        _judged("BLIP+Slow reaches 95 %", main, Bound(95), " %", context.settings.seeds),
        difference("BLIP text only is below BLIP", "text", "BLIP", Bound(0, below=True)),
        difference("Non-IID is below IID", "Non-IID", "BLIP+Slow", Bound(0, below=True)),
        difference(f"FedProx (mu={MU}) is not below FedAvg on Non-IID", "FedProx", "Non-IID", Bound(0)),
    )


def _sides(context: Context) -> dict[str, tuple[Job, ...]]:
    replace = msgspec.structs.replace
    skewed = context.job(FLAMEST, partition=context.dirichlet())
    prox = replace(skewed, strategy=replace(skewed.strategy, name="fedprox", mu=MU))
    wanted = {
        "BLIP+Slow": context.job(FLAMEST),
        "Slow": context.job("slow"),
        "BLIP": context.job("blip"),
        "text": context.job("blip-text"),
        "Non-IID": skewed,
        "FedProx": prox,
    }
    return {name: seeded(context, job) for name, job in wanted.items() if context.data.state(job.extractor) == READY}


def _judged(claim: str, value: Estimate | None, bound: Bound, unit: str, seeds: int) -> Finding:
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
        text += f" over the {value.count} of {seeds} seeds that both could be measured with"
    if value.interval is None:
        text += "; one seed: no interval"
    elif not clear:
        text += f"; not clear: the interval crosses {bound.value:g}"
    return Finding(claim, holds, clear, value, text)
