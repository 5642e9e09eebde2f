"""Features to measure accuracy on, with their groups: UCF101 by an .npz file, the mini-world made here.

    python -m bench.feature_sets [--folder build/bench]

makes the mini-world's: 3,500 clips of 25 classes in 140 scenes, one of each class in a scene, through the bundle that
comes with the package. Scenes 0 to 99 are for training, 100 to 139 for the test. It takes about ten minutes on two
cores, once; afterwards ``miniworld`` reads a file of 5 MB.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flamest.agent.training.dataset import FeatureTable, feature_table
from flamest.agent.training.holdout import hold_out_groups

FOLDER = Path(__file__).parents[1] / "build" / "bench"
MINIWORLD_SEED = 16  # of no other clips: the networks were trained on 1000, the experiments use 0
TRAINING_SCENES, TEST_SCENES = 100, 40
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Labelled embeddings, and the group of each clip: clips of one group are never on both sides of a split."""

    name: str
    table: FeatureTable
    labels: tuple[str, ...]  # class k is labels[k]
    groups: tuple[str, ...]  # of each row

    def split(self, share: float, seed: int) -> tuple[Rows, Rows]:
        """Return rows to train on and rows to test on: about ``share`` of every class, in whole groups."""
        return hold_out_groups(self.groups, share, seed, [self.labels[number] for number in self.table.y])


def from_npz(path: Path, name: str = "") -> FeatureSet:
    """Read an .npz with ``x`` [N, D], ``y`` (label names) and ``group``; a group is one of its class alone."""
    with np.load(path, allow_pickle=False) as data:
        x, y, group = data["x"].astype(np.float32), data["y"].tolist(), data["group"].tolist()
    labels, whole = tuple(sorted(set(y))), tuple(f"{label}/{each}" for label, each in zip(y, group, strict=True))
    return FeatureSet(name or path.stem, feature_table(x, y, labels), labels, whole)


def miniworld(folder: Path = FOLDER) -> FeatureSet:
    """Return the mini-world's clips, made in ``folder`` where they are not there yet."""
    path = folder / "miniworld.npz"
    if not path.is_file():
        _make_miniworld(folder, path)
    with np.load(path, allow_pickle=False) as data:
        x, y, groups = data["x"], data["y"].tolist(), data["group"].tolist()
    labels = tuple(sorted(set(y)))
    return FeatureSet("miniworld", feature_table(x, y, labels), labels, tuple(groups))


def miniworld_split(features: FeatureSet, clips_per_class: int, seed: int) -> tuple[Rows, Rows]:
    """Return the rows of so many training scenes (one clip per class in each), drawn by ``seed``, and the test rows."""
    scenes = np.array([int(group[1:]) for group in features.groups])
    drawn = np.random.default_rng(seed).permutation(TRAINING_SCENES)[:clips_per_class]
    return np.flatnonzero(np.isin(scenes, drawn)), np.flatnonzero(scenes >= TRAINING_SCENES)


def _make_miniworld(folder: Path, path: Path) -> None:
    import flamest as fl
    from flamest.base.progress import progress_bar
    from flamest.experiments.miniworld.videos import render_dataset

    videos, scenes = folder / "miniworld-videos", TRAINING_SCENES + TEST_SCENES
    if not videos.is_dir():
        with progress_bar("rendering", 25 * scenes, unit="clips") as progress:
            render_dataset(videos, groups=scenes, seed=MINIWORLD_SEED, progress=progress)
    features = fl.open_bundle("miniworld").extract(videos, store=folder / "miniworld.sqlite")
    building = path.with_suffix(".part.npz")
    np.savez_compressed(
        building, x=features.x, y=np.array(features.labels)[features.y], group=np.array(features.groups)
    )
    building.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    made = miniworld(parser.parse_args().folder)
    table, scenes = made.table, len(set(made.groups))
    print(f"{len(table):,} clips, {table.x.shape[1]}-d, {len(made.labels)} classes, {scenes} scenes")


if __name__ == "__main__":
    main()
