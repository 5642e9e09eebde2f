"""The paper's claims, paired by seed, with their intervals."""

from __future__ import annotations

import msgspec
import pytest
from flamest.experiments.paper.findings import finding_jobs, findings
from flamest.experiments.paper.inputs import ExperimentInputs
from flamest.experiments.paper.jobs import Job, RunFailure, RunResult
from flamest.experiments.paper.pool import WorkerConfig, run_jobs

ONE_OF_TWO = " over 1 of 2 seeds, for which both sides were measured"


def with_last(run: RunResult, last: float) -> RunResult:
    return msgspec.structs.replace(run, last=last, curve=(last,))


@pytest.fixture
def finished_run(inputs: ExperimentInputs, worker: WorkerConfig) -> RunResult:
    [run] = run_jobs([inputs.job(rounds=1)], inputs.data, worker).values()
    assert isinstance(run, RunResult)
    return run


@pytest.mark.parametrize(
    ("slow", "text"),
    [
        ((0.84, 0.84), "came out: +6.00 ± 0.00 points"),
        ((0.83, 0.85), "came out: +6.00 ± 12.71 points; not clear: the interval crosses 5"),
        ((0.89, 0.89), "did not come out: +1.00 ± 0.00 points"),
        ((0.84, None), f"came out: +6.00 points{ONE_OF_TWO}; one seed: no interval"),
        ((None, None), "not measured"),
    ],
)
def test_a_finding_reports_whether_its_interval_crosses_the_bound(
    inputs: ExperimentInputs, finished_run: RunResult, slow: tuple[float | None, ...], text: str
) -> None:
    failure = RunFailure("diverged", "reason")
    results: dict[Job, RunResult | RunFailure] = {}
    for job in finding_jobs(inputs):
        last = slow[job.seed] if job.extractor == "slow" else 0.9
        results[job] = failure if last is None else with_last(finished_run, last)
    assert findings(inputs, results)[0].text == text


def test_a_difference_uses_the_seeds_that_both_sides_have(inputs: ExperimentInputs, finished_run: RunResult) -> None:
    lasts = {("blip+slow", 0): None, ("blip+slow", 1): 0.9, ("slow", 0): 0.2, ("slow", 1): 0.8}
    results: dict[Job, RunResult | RunFailure] = {}
    for job in finding_jobs(inputs):
        last = lasts.get((job.extractor, job.seed), 0.5)
        results[job] = RunFailure("diverged", "reason") if last is None else with_last(finished_run, last)
    value = findings(inputs, results)[0].value
    assert value is not None
    assert (value.mean, value.count) == (pytest.approx(10.0), 1)
