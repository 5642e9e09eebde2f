"""Made-up feature stores for tests of the tables: BLIP shows the object, Slow the motion, and a class is both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.base.process import Shutdown
from flamest.experiments.paper import request
from flamest.experiments.paper.features import FeatureSource, open_features
from flamest.experiments.paper.inputs import OTHER, ExperimentInputs, Settings
from flamest.experiments.paper.pool import WorkerConfig
from flamest.experiments.paper.splits import SplitRule
from flamest.fedproto.records import TrainSettings
from flamest.runtime.clip_records import Clip

WIDTHS = {"blip": 6, "slow": 5, "blip-text": 4}
QUICK = TrainSettings(epochs=1, batch_size=64, learning_rate=0.01)
MakeStores = Callable[..., Path]


def _make_stores(folder: Path, *, objects: int = 2, motions: int = 2, groups: int = 15) -> Path:
    """NAME.sqlite per extractor in ``folder``, with one clip per class and group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in WIDTHS:
        random = np.random.default_rng(len(name))
        centres = random.normal(size=(max(objects, motions), WIDTHS[name])) * 2
        rows = []
        for kind in range(objects):
            for motion in range(motions):
                for group in range(groups):
                    path = f"o{kind}_m{motion}/g{group}_c0.mp4"
                    shown = motion if name == "slow" else kind
                    noise = 3.0 if name == "blip-text" else 0.4
                    x = (centres[shown] + random.normal(size=WIDTHS[name]) * noise).astype(np.float32)
                    sha256 = hashlib.sha256(path.encode()).hexdigest()
                    clip = Clip(Path(path), sha256, f"o{kind}_m{motion}", f"g{group}")
                    rows.append((path, FeatureRow(clip, x, 0 if name == "slow" else len(x), name, "fp32", "a ball")))
        with FeatureStore.open(folder / f"{name}.sqlite") as store:
            store.add_rows(rows)
    return folder


@pytest.fixture(scope="session")
def make_stores() -> MakeStores:
    """``make_stores(folder, groups=…)`` writes a store per extractor."""
    return _make_stores


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of four classes in 15 groups. Read only."""
    return _make_stores(tmp_path_factory.mktemp("features"))


@pytest.fixture
def inputs(folder: Path) -> ExperimentInputs:
    """Two rounds, two seeds, whole groups held out."""
    settings = Settings("", OTHER, 2, 2, QUICK, SplitRule())
    return ExperimentInputs(open_features(FeatureSource(folder=folder)), settings)


@pytest.fixture
def worker(folder: Path, tmp_path: Path) -> WorkerConfig:
    """One process, results in a new folder."""
    return WorkerConfig(FeatureSource(folder=folder), tmp_path / "runs")


@pytest.fixture(autouse=True)
def no_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands do not take over this process's signals."""
    monkeypatch.setattr(request.Shutdown, "on_signals", Shutdown)
