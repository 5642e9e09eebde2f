"""What the demo measures when the run is over: every round's model on the test clips, and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..agent.extraction.store import FeatureStore, StoredFeatures
from ..agent.training.dataset import FeatureTable, feature_table, silo_data
from ..agent.training.local import train_alone
from ..agent.training.trainer import HeadTrainer
from ..base.errors import DataError
from ..base.progress import Progress
from ..fedproto.head import HeadSpec
from ..fedproto.model_file import read_model
from ..fedproto.records import TrainSettings


@dataclass(frozen=True)
class Rig:
    """What federated training and its baselines share, so that they can be compared."""

    labels: tuple[str, ...]
    train: TrainSettings
    rounds: int
    hold_out: float  # share of a silo's groups that it does not train on
    seed: int


@dataclass(frozen=True)
class Baselines:
    """Accuracies on the test clips, 0 to 1, after the same number of epochs as the federated run."""

    local: dict[str, float]  # by silo: trained on its own rows only
    centralised: float  # one model on all silos' training rows


def read_store(path: Path, fingerprint: str) -> StoredFeatures:
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
        evaluation = trainer.evaluate(model.params, test)
        accuracies.append(evaluation.correct / evaluation.count)
    return accuracies


def test_table(stored: StoredFeatures, labels: Sequence[str]) -> FeatureTable:
    """The test clips' rows. Raises DataError when there are none."""
    if not len(stored.labels):
        raise DataError("no test clip could be extracted")
    return feature_table(stored.x, [label or "" for label in stored.labels], labels)


def baselines(silos: dict[str, StoredFeatures], test: FeatureTable, rig: Rig, progress: Progress) -> Baselines:
    """Train on each silo alone and on all rows together, for rounds × epochs, as the federation did."""
    tables = {
        silo: silo_data(stored, rig.labels, hold_out=rig.hold_out, seed=rig.seed).train
        for silo, stored in silos.items()
    }
    union = FeatureTable(
        np.concatenate([table.x for table in tables.values()]), np.concatenate([table.y for table in tables.values()])
    )
    trainer = HeadTrainer(HeadSpec(inputs=test.x.shape[1], outputs=len(rig.labels)))

    def accuracy(table: FeatureTable) -> float:
        model = train_alone(trainer, table, test, rig.train, passes=rig.rounds, seed=rig.seed)
        progress.advance()
        return model.last

    return Baselines({silo: accuracy(table) for silo, table in tables.items()}, accuracy(union))
