"""Evaluation of the demo's run: every round's model on the test clips, and local-only and centralised models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..agent.extraction.store import FeatureStore, StoredFeatures
from ..agent.training.dataset import FeatureTable, feature_table, silo_data
from ..agent.training.local import train_locally
from ..agent.training.trainer import HeadTrainer, evaluate
from ..base.errors import DataError
from ..base.progress import Progress
from ..fedproto.head import HeadSpec
from ..fedproto.model_file import read_model
from ..fedproto.records import TrainSettings

# The paper's batch of 128 and rate of 0.01 are for silos with thousands of clips; the demo's have about eighty.
TRAIN = TrainSettings(batch_size=16, learning_rate=0.0005)


def training_text(train: TrainSettings) -> str:
    """The settings of local training, for people."""
    return f"{train.epochs} epochs per round, batch {train.batch_size}, Adam at {train.learning_rate}"


@dataclass(frozen=True)
class TrainingSetup:
    """Settings that the federated run and its comparison models share."""

    labels: tuple[str, ...]
    train: TrainSettings
    rounds: int
    hold_out: float  # share of a silo's groups that it does not train on
    seed: int


@dataclass(frozen=True)
class ReferenceAccuracies:
    """Test accuracies (0 to 1) of models trained for as many epochs as the federated one."""

    local: dict[str, float]  # by silo, trained on its own rows only
    centralised: float  # one model on all silos' training rows


def read_store(path: Path, fingerprint: str) -> StoredFeatures:
    """Features of that fingerprint. Raises DataError."""
    with FeatureStore.open(path, create=False, read_only=True) as store:
        return store.read(fingerprint)


def round_accuracies(models: Sequence[Path], test: FeatureTable) -> list[float]:
    """Top-1 accuracy of each round's model file on ``test``."""
    accuracies = []
    trainer: HeadTrainer | None = None
    for path in models:
        model = read_model(path)
        if trainer is None or trainer.spec != model.head:
            trainer = HeadTrainer(model.head)
        evaluation = evaluate(trainer, model.params, test)
        accuracies.append(evaluation.correct / evaluation.count)
    return accuracies


def test_table(stored: StoredFeatures, labels: Sequence[str]) -> FeatureTable:
    """The features of the test clips. Raises DataError when there are none."""
    if not len(stored.labels):
        raise DataError(
            "no test clip could be extracted",
            fix="see the reasons above; flamest-agent doctor shows if this machine can decode video",
        )
    return feature_table(stored.x, [label or "" for label in stored.labels], labels)


def train_references(
    silos: dict[str, StoredFeatures], test: FeatureTable, training: TrainingSetup, progress: Progress
) -> ReferenceAccuracies:
    """Train on each silo alone and on all rows together, for rounds × epochs like the federation."""
    tables = {
        silo: silo_data(stored, training.labels, hold_out=training.hold_out, seed=training.seed).train
        for silo, stored in silos.items()
    }
    union = FeatureTable(
        np.concatenate([table.x for table in tables.values()]), np.concatenate([table.y for table in tables.values()])
    )
    trainer = HeadTrainer(HeadSpec(inputs=test.x.shape[1], outputs=len(training.labels)))

    def accuracy(table: FeatureTable) -> float:
        model = train_locally(trainer, table, test, training.train, rounds=training.rounds, seed=training.seed)
        progress.advance()
        return model.last

    return ReferenceAccuracies({silo: accuracy(table) for silo, table in tables.items()}, accuracy(union))
