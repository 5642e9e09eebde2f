"""One training run of an experiment: its job, the key of its file, and its result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from ...base.files import write_atomic
from ...fedproto.records import Strategy, TrainSettings
from ..partition import IMPOSSIBLE, LabelSkew
from .splits import SplitRule

RUNS = 2  # part of every key; raise it when the same job would give other numbers
SKEWED_RUNS = 3  # the same for jobs on a label-skew split
# Failures that would recur with the same job and features; any other error is of the machine or the command.
LASTING = ("diverged", IMPOSSIBLE)


class PartitionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The split of the training clips over silos. One silo with ``iid`` is centralised training."""

    kind: Literal["iid", "dirichlet", "label-skew"] = "iid"
    silos: int = 4
    beta: float = 0.6  # dirichlet
    skew: LabelSkew = LabelSkew()  # label-skew


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training run: everything that decides its result except the features."""

    extractor: str
    partition: PartitionRule = PartitionRule()
    split: SplitRule = SplitRule()
    strategy: Strategy = Strategy()
    train: TrainSettings = TrainSettings()
    rounds: int = 80
    seed: int = 0  # of the partition, the first model and the shuffles
    hidden: tuple[int, ...] = (512, 256)
    fusion: Literal["mlp", "rgcf"] = "mlp"
    standardise: bool = False
    measured_on: Literal["test", "train"] = "test"  # the curve's rows
    timed: bool = False  # runs alone, on one thread; only training is timed


class RunFailure(msgspec.Struct, frozen=True, tag="failure"):
    """A run that always fails (LASTING): an impossible split, or a training that diverged."""

    code: str
    message: str


class RunResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="result"):
    """Result of one run. Accuracies are shares of the rows, 0 to 1."""

    curve: tuple[float, ...]  # of the global model after each round, on ``Job.measured_on``
    last: float  # of the final model on test
    train_last: float  # of the final model on all silos' training rows
    predictions: tuple[int, ...]  # the final model's class of every test row
    silo_rows: tuple[int, ...]
    unused_rows: int  # training rows that the partition gave to no silo
    test_rows: int
    parameters: int  # of the head
    bytes_per_silo_round: int
    seconds: float  # training and, unless timed, measuring
    seconds_test: float  # the final model over the test rows once
    model_sha256: str

    @property
    def best(self) -> float:
        """Accuracy of the best round, or of the final model where it is better (averaged rounds)."""
        return max((*self.curve, self.last))


class StoredRun(msgspec.Struct, frozen=True):
    """A file of OUT/runs."""

    key: str
    data: str  # ExperimentData.digest
    job: Job
    result: RunResult | RunFailure


def job_key(job: Job, data_digest: str, rows_digest: str = "") -> str:
    """64 hexadecimal digits that differ with the job, the features and the split.

    ``rows_digest``: of the rows of an official split, which come from files; the other splits follow from
    the job and the features.
    """
    runs = SKEWED_RUNS if job.partition.kind == "label-skew" else RUNS
    body = msgspec.json.encode((runs, data_digest, job, *([rows_digest] if rows_digest else [])), order="deterministic")
    return hashlib.sha256(body).hexdigest()


class RunFolder:
    """The folder OUT/runs: one JSON file per finished run, shared by all tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:24]}.json"

    def find(self, key: str) -> RunResult | RunFailure | None:
        """The result stored under ``key``; None when it is missing, unreadable, or a failure that may not recur."""
        try:
            stored = msgspec.json.decode(self._path(key).read_bytes(), type=StoredRun)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        temporary = isinstance(stored.result, RunFailure) and stored.result.code not in LASTING
        return stored.result if stored.key == key and not temporary else None

    def store(self, key: str, data: str, job: Job, result: RunResult | RunFailure) -> None:
        """Write the run's file. Raises StorageError."""
        write_atomic(self._path(key), msgspec.json.format(msgspec.json.encode(StoredRun(key, data, job, result))))


Results = Mapping[Job, RunResult | RunFailure]


def finished(results: Results, jobs: Iterable[Job]) -> list[RunResult]:
    """The results of the ``jobs`` that finished, in order."""
    found = (results[job] for job in jobs)
    return [result for result in found if isinstance(result, RunResult)]


def unique(jobs: Iterable[Job]) -> list[Job]:
    """Each job once, in order of first appearance."""
    return list(dict.fromkeys(jobs))
