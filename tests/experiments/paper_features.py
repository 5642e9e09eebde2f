"""Made-up features for tests of the tables: BLIP tells the object, Slow the motion, and a class is both."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.runtime.records import Clip

WIDTHS = {"blip": 6, "slow": 5, "blip-text": 4}


def make_stores(folder: Path, *, objects: int = 3, motions: int = 3, groups: int = 8, names=tuple(WIDTHS)) -> Path:
    """NAME.sqlite per extractor in ``folder``: one clip per class and group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        random = np.random.default_rng(len(name))
        centres = random.normal(size=(max(objects, motions), WIDTHS[name])) * 2
        rows = []
        for thing in range(objects):
            for motion in range(motions):
                for group in range(groups):
                    path = f"o{thing}_m{motion}/g{group}_c0.mp4"
                    told = motion if name == "slow" else thing
                    noise = 3.0 if name == "blip-text" else 0.4
                    x = (centres[told] + random.normal(size=WIDTHS[name]) * noise).astype(np.float32)
                    sha256 = hashlib.sha256(path.encode()).hexdigest()
                    clip = Clip(Path(path), sha256, f"o{thing}_m{motion}", f"g{group}")
                    rows.append((path, FeatureRow(clip, x, 0 if name == "slow" else len(x), name, "fp32", "a ball")))
        with FeatureStore.open(folder / f"{name}.sqlite") as store:
            store.add_rows(rows)
    return folder
