"""Did the paper's order come out? Each claim as a difference over the seeds, with its interval."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .estimates import Estimate, estimate, paired
from .features import FLAMEST, READY
from .jobs import Job, Results, finished
from .plans import MU, seeded
from .settings import Context


class Finding(msgspec.Struct, frozen=True):
    claim: str
    holds: bool | None  # of the means; None: not measured
    clear: bool  # the whole interval is on the claim's side
    value: Estimate | None  # points, or percent
    text: str


def finding_jobs(context: Context) -> list[Job]:
    """The runs behind the claims; all of them stand in Tables 2 and 5 too."""
    return [job for jobs in _sides(context).values() for job in jobs]


def findings(context: Context, results: Results) -> tuple[Finding, ...]:
    """Each claim, from the last round's accuracies of the same seeds."""
    last = {name: [100 * run.last for run in finished(results, jobs)] for name, jobs in _sides(context).items()}

    def difference(claim: str, left: str, right: str, fits: Callable[[float], bool]) -> Finding:
        if not last.get(left) or len(last[left]) != len(last.get(right, ())):
            return Finding(claim, None, False, None, "not measured")
        return _judged(claim, paired(last[left], last[right]), fits, "points")

    main = last.get("BLIP+Slow")
    return (
        difference("BLIP+Slow is at least 5 points above Slow", "BLIP+Slow", "Slow", lambda value: value >= 5),
        difference("BLIP+Slow is at least 5 points above BLIP", "BLIP+Slow", "BLIP", lambda value: value >= 5),
        _judged("BLIP+Slow reaches 95 %", estimate(main or []), lambda value: value >= 95, "%"),
        difference("BLIP text only is below BLIP", "text", "BLIP", lambda value: value < 0),
        difference("Non-IID is below IID", "Non-IID", "BLIP+Slow", lambda value: value < 0),
        difference(f"FedProx (mu={MU}) is not below FedAvg on Non-IID", "FedProx", "Non-IID", lambda value: value >= 0),
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


def _judged(claim: str, value: Estimate | None, fits: Callable[[float], bool], unit: str) -> Finding:
    if value is None:
        return Finding(claim, None, False, None, "not measured")
    ends = [value.mean - (value.interval or 0.0), value.mean + (value.interval or 0.0)]
    holds = fits(value.mean)
    clear = value.interval is not None and all(fits(end) == holds for end in ends)
    word = "came out" if holds else "did not come out"
    sign = "+" if unit == "points" and value.mean >= 0 else ""
    doubt = "" if clear else ", within the interval of chance"
    return Finding(claim, holds, clear, value, f"{word}: {sign}{value} {unit}{doubt}")
