"""Run of one job: local training, codec and aggregation of the simulation, on the job's features."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ...agent.training.dataset import FeatureTable
from ...agent.training.local import train_locally
from ...agent.training.trainer import HeadTrainer, evaluate
from ...fedproto.head import HeadSpec, params_sha256
from ...fedproto.records import RunSettings
from ..partition import Partition, Rows, dirichlet, iid, label_skew
from ..recordings import silo_units, smallest_share, split_units
from ..simulation import SimulatedSilo, simulate
from .features import ExperimentData
from .jobs import Job, PartitionRule, RunResult
from .splits import split_data

NO_DEADLINE_S = 1e6  # a simulation has no deadline


def head_of(job: Job, data: ExperimentData) -> HeadSpec:
    """The classifier of ``job``, with a block per modality of the extractor."""
    widths = data.widths(job.extractor)
    blocks = widths if job.fusion == "rgcf" or job.standardise else ()
    return HeadSpec(sum(widths), len(data.labels), job.hidden, job.fusion, blocks=blocks, standardise=job.standardise)


def partition_of(rule: PartitionRule, y: Rows, units: Rows, seed: int) -> Partition:
    """Split of the training rows over silos by whole units (recordings.py).

    No silo of a Dirichlet split is below an eighth of its even share.
    """

    def split(classes: Rows) -> Partition:
        if rule.kind == "label-skew":
            return label_skew(classes, silos=rule.silos, seed=seed, skew=rule.skew)
        if rule.kind == "dirichlet":
            smallest = smallest_share(len(classes), len(y), rule.silos)
            return dirichlet(classes, silos=rule.silos, beta=rule.beta, seed=seed, smallest=smallest)
        return iid(len(classes), silos=rule.silos, seed=seed)

    return split_units(units, y, split)


def run_job(job: Job, data: ExperimentData, *, dataset: str = "", videos: Path | None = None) -> RunResult:
    """Train by ``job`` and measure on the test rows. Raises DataError as training and splitting do."""
    split = split_data(data, job.split, dataset=dataset, videos=videos)
    x = data.x(job.extractor)
    union = FeatureTable(x[split.train], data.y[split.train])
    test = FeatureTable(x[split.test], data.y[split.test])
    spec = head_of(job, data)
    if job.timed:
        return _timed(job, spec, union, test)
    units = silo_units([data.groups[row] for row in split.train], [data.extents[row] for row in split.train])
    partition = partition_of(job.partition, union.y, units, job.seed)
    silos = [SimulatedSilo(f"silo-{number}", union.rows(rows)) for number, rows in enumerate(partition.silos, start=1)]
    settings = RunSettings(
        run="experiment",
        labels=data.labels,
        head=spec,
        rounds=job.rounds,
        min_silos=len(silos),
        deadline_s=NO_DEADLINE_S,
        fingerprint=data.digest(job.extractor),
        seed=job.seed,
        strategy=job.strategy,
        train=job.train,
    )
    run = simulate(settings, silos, test=union if job.measured_on == "train" else test)
    trainer = HeadTrainer(spec, threads=1)
    trained_on = union.rows(np.concatenate(partition.silos))
    predictions, seconds_test = _predict(trainer, run.params, test)
    return RunResult(
        curve=tuple(round_.correct / round_.count for round_ in run.rounds),
        last=float((predictions == test.y).mean()),
        train_last=_accuracy(trainer, run.params, trained_on),
        predictions=tuple(int(number) for number in predictions),
        silo_rows=partition.sizes,
        unused_rows=partition.unused,
        test_rows=len(test),
        parameters=spec.parameters,
        bytes_per_silo_round=run.bytes_per_silo_round,
        seconds=run.seconds,
        seconds_test=seconds_test,
        model_sha256=run.sha256,
    )


def _timed(job: Job, spec: HeadSpec, union: FeatureTable, test: FeatureTable) -> RunResult:
    """Centralised training for rounds × epochs epochs, without measurements in between."""
    trainer = HeadTrainer(spec, threads=1)
    no_rows = test.rows(np.empty(0, np.int64))
    train_locally(
        trainer, union.rows(np.arange(min(len(union), 8))), no_rows, job.train, rounds=1, seed=job.seed
    )  # warm
    start = time.perf_counter()
    model = train_locally(trainer, union, no_rows, job.train, rounds=job.rounds, seed=job.seed)
    seconds = time.perf_counter() - start
    predictions, seconds_test = _predict(trainer, model.params, test)
    last = float((predictions == test.y).mean())
    return RunResult(
        curve=(last,),
        last=last,
        train_last=_accuracy(trainer, model.params, union),
        predictions=tuple(int(number) for number in predictions),
        silo_rows=(len(union),),
        unused_rows=0,
        test_rows=len(test),
        parameters=spec.parameters,
        bytes_per_silo_round=0,
        seconds=seconds,
        seconds_test=seconds_test,
        model_sha256=params_sha256(model.params),
    )


def _predict(trainer: HeadTrainer, params: dict[str, np.ndarray], test: FeatureTable) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    predictions = trainer.logits(params, test.x).argmax(axis=1)
    return predictions, time.perf_counter() - start


def _accuracy(trainer: HeadTrainer, params: dict[str, np.ndarray], table: FeatureTable) -> float:
    measured = evaluate(trainer, params, table)
    return measured.correct / max(measured.count, 1)
