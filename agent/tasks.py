"""What the worker process does for the daemon: one function per kind of work, records in and out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import DataError
from ..fedproto.head import HeadSpec, Params
from ..fedproto.records import Evaluation, RunSettings
from .extract import ExtractRequest, extract_folder
from .store import FeatureStore
from .training.dataset import SiloData, silo_data
from .training.local_round import train_silo
from .training.trainer import HeadTrainer


@dataclass(frozen=True)
class DataSource:
    """Which rows of which store a silo trains on."""

    store: Path
    precision: str | None
    hold_out: float  # share of groups
    threads: int | None


@dataclass(frozen=True, eq=False)
class RoundOutcome:
    """What one round of local training came to."""

    params: Params | None  # None: too few examples, nothing was trained
    examples: int
    held_out: int
    ignored: int  # clips that the run cannot use
    loss: float  # last epoch's, nats
    evaluation: Evaluation | None  # of the incoming model; None without held-out clips


def train_round(
    source: DataSource, run: RunSettings, silo: str, round_number: int, params: Params, min_samples: int
) -> RoundOutcome:
    """Evaluate the incoming model on the held-out clips, then train it on the others."""
    data = _load(source, run)
    trainer = _trainer(run.head, source.threads)
    evaluation = trainer.evaluate(params, data.held_out) if len(data.held_out) else None
    sizes = {"examples": len(data.train), "held_out": len(data.held_out), "ignored": data.ignored}
    if len(data.train) < min_samples:
        return RoundOutcome(params=None, loss=float("nan"), evaluation=evaluation, **sizes)
    if run.strategy.name == "feddyn":
        raise DataError("this agent cannot take part in feddyn yet")
    trained, _ = train_silo(trainer, run, silo, round_number, params, data.train, {})
    return RoundOutcome(params=trained.params, loss=trained.loss, evaluation=evaluation, **sizes)


def extract_new(bundle: Path, videos: Path, store: Path, threads: int | None) -> dict[str, Any]:
    """Bring the store up to date with the video folder; counts and times only, for the log."""
    report = extract_folder(ExtractRequest(bundle, videos, store, threads=threads))
    return {
        "clips": report.clips,
        "extracted": report.extracted,
        "skipped": report.skipped,
        "failed": len(report.failed),
        "ms_per_clip": report.ms_per_clip or 0.0,
        "peak_mb": report.peak_mb,
    }


def _load(source: DataSource, run: RunSettings) -> SiloData:
    with FeatureStore.open(source.store, create=False, read_only=True) as store:
        stored = store.read(run.fingerprint, source.precision)
    return silo_data(stored, run.labels, hold_out=source.hold_out, seed=run.seed)


@functools.lru_cache(maxsize=2)
def _trainer(head: HeadSpec, threads: int | None) -> HeadTrainer:
    """The graphs of a head stay open from round to round."""
    return HeadTrainer(head, threads=threads)
