"""An elementary run: what it is, the key that it is remembered by, and what came out."""

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

RUNS = 2  # raise it when the same job would give other numbers
SKEWED_RUNS = 3  # the same for jobs on a label-skew split
# What the same job on the same features would meet again; any other error is of the machine or the command.
LASTING = ("diverged", IMPOSSIBLE)


class PartitionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the training clips come to the silos. One silo with ``iid`` is centralised training."""

    kind: Literal["iid", "dirichlet", "label-skew"] = "iid"
    silos: int = 4
    beta: float = 0.6  # dirichlet
    skew: LabelSkew = LabelSkew()  # label-skew


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training, all that decides its numbers but the features themselves."""

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
    timed: bool = False  # alone on the machine, one thread, the clock on training only


class RunFailure(msgspec.Struct, frozen=True, tag="failure"):
    """A run that cannot be (LASTING): its clips cannot be shared out so, or training diverged."""

    code: str
    message: str


class RunResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="result"):
    """What one run gave. Accuracies are shares of the rows, 0 to 1."""

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
        """The best round's, or the final model's where that is better (averaged rounds)."""
        return max((*self.curve, self.last))


class StoredRun(msgspec.Struct, frozen=True):
    """A file of OUT/runs."""

    key: str
    data: str  # ExperimentData.digest
    job: Job
    result: RunResult | RunFailure


def job_key(job: Job, data_digest: str, rows_digest: str = "") -> str:
    """64 hexadecimal digits; another job, other features or another split give another.

    ``rows_digest``: of the rows that an official split trains on and tests with, as they come from files;
    the other splits follow from the job and the features.
    """
    runs = SKEWED_RUNS if job.partition.kind == "label-skew" else RUNS
    body = msgspec.json.encode((runs, data_digest, job, *([rows_digest] if rows_digest else [])), order="deterministic")
    return hashlib.sha256(body).hexdigest()


class RunFolder:
    """OUT/runs: one JSON file per finished run, shared by all tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:24]}.json"

    def find(self, key: str) -> RunResult | RunFailure | None:
        """The result kept under ``key``; None when there is none, none that can be read, or a failure that may pass."""
        try:
            stored = msgspec.json.decode(self._path(key).read_bytes(), type=StoredRun)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        passing = isinstance(stored.result, RunFailure) and stored.result.code not in LASTING
        return stored.result if stored.key == key and not passing else None

    def keep(self, key: str, data: str, job: Job, result: RunResult | RunFailure) -> None:
        write_atomic(self._path(key), msgspec.json.format(msgspec.json.encode(StoredRun(key, data, job, result))))


Results = Mapping[Job, RunResult | RunFailure]


def finished(results: Results, jobs: Iterable[Job]) -> list[RunResult]:
    """The results of ``jobs`` that came to an end, in order."""
    found = (results[job] for job in jobs)
    return [result for result in found if isinstance(result, RunResult)]


def unique(jobs: Iterable[Job]) -> list[Job]:
    """Each job once, in the order first asked for."""
    return list(dict.fromkeys(jobs))
