"""Made-up features, and a few clips of the mini-world with their features from the bundle that comes along."""

from __future__ import annotations

from pathlib import Path

import flamest as fl
import numpy as np
import pytest

CLASSES, WIDTH, GROUPS = 5, 24, 20


@pytest.fixture(scope="session")
def features() -> fl.Features:
    """200 clips of five classes in 20 groups of ten, each class in every group."""
    random = np.random.default_rng(3)
    y = np.tile(np.arange(CLASSES), 2 * GROUPS)
    x = random.normal(size=(CLASSES, WIDTH))[y] + random.normal(size=(len(y), WIDTH))
    groups = [f"scene-{row // 10}" for row in range(len(y))]
    return fl.Features.from_arrays(x, [f"class-{number}" for number in y], groups=groups)


@pytest.fixture(scope="session")
def split(features: fl.Features) -> tuple[fl.Silos, fl.Features]:
    """Four silos and the test clips."""
    return fl.split(features, silos=4, beta=0.6, seed=0)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of the mini-world in three scenes, a clip each. Read only."""
    from flamest.experiments.miniworld.videos import render_dataset

    folder = tmp_path_factory.mktemp("miniworld") / "videos"
    render_dataset(folder, groups=3, seed=5, objects=("ball", "box"), motions=("crossing", "lifting"), processes=1)
    return folder


@pytest.fixture(scope="session")
def extracted(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[fl.Features, Path]:
    """Features of ``videos`` from the packaged bundle, and their store."""
    store = tmp_path_factory.mktemp("store") / "features.sqlite"
    return fl.open_bundle().extract(videos, store=store, threads=1, progress=False), store
