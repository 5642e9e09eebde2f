"""Accuracy on UT-Interaction with an image encoder of one's own: EfficientNet-Lite0 averaged, and its motion.

    python -m bench.ut_interaction --videos DIR --bundle BUNDLE [--store FILE]

``DIR`` has LABEL/set_clip_sequence_label.avi; ``BUNDLE`` is the export of examples/encoders/efficientnet.toml. Each
of the sequences is left out once: a head is trained on the others' clips and answers for those of the one left out.
Settings that are searched (C of the two scikit-learn models, k) are chosen by leaving out each training sequence,
so no test clip decides anything. The table has the default recipe with several seeds, LinearSVC and logistic
regression on rows of length 1, nearest neighbours by cosine, and what the containers' metadata alone gives. Parts
of the embedding (the mean alone, the motion alone) are measured with logistic regression, to see what each brings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flamest as fl
import numpy as np
import numpy.typing as npt

from .record import store_result

SEEDS = range(5)
C_VALUES = (0.1, 1.0, 10.0, 100.0)
K_VALUES = (1, 3, 5, 7)
Values = npt.NDArray[np.float64]
Right = npt.NDArray[np.bool_]  # [clips]
Fit = Callable[[Values, npt.NDArray[np.int64], Values], npt.NDArray[np.int64]]  # rows, classes, test rows -> classes


def sequence_of(file: str) -> str:
    """Set and sequence of ``LABEL/set1_17_3_0.avi``: "set1/3"."""
    of_set, _, sequence, _ = Path(file).stem.split("_")
    return f"{of_set}/{sequence}"


def folds(sequences: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Rows to train on and rows to test on, for each sequence."""
    of = np.array(sequences)
    for each in sorted(set(sequences)):
        yield np.flatnonzero(of != each), np.flatnonzero(of == each)


def wilson(right: float, clips: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953)."""
    z, share = 1.959964, right / clips
    middle = (share + z * z / (2 * clips)) / (1 + z * z / clips)
    half = z / (1 + z * z / clips) * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips))
    return middle - half, middle + half


def left_out(x: Values, y: npt.NDArray[np.int64], sequences: Sequence[str], fit: Fit) -> Right:
    """Is each clip answered right by the model of the other sequences?"""
    right = np.zeros(len(y), bool)
    for train, test in folds(sequences):
        right[test] = fit(x[train], y[train], x[test]) == y[test]
    return right


def chosen(
    x: Values, y: npt.NDArray[np.int64], sequences: Sequence[str], of: dict[Any, Fit]
) -> tuple[Right, list[Any]]:
    """As ``left_out`` with the setting that is best on the training sequences, each left out; the first of equals."""
    right, settings = np.zeros(len(y), bool), []
    for train, test in folds(sequences):
        inner = [sequences[row] for row in train]
        scores = {key: left_out(x[train], y[train], inner, fit).sum() for key, fit in of.items()}
        best = max(scores, key=lambda key: scores[key])
        settings.append(best)
        right[test] = of[best](x[train], y[train], x[test]) == y[test]
    return right, settings


def rotated(x: Values) -> Values:
    """Rows of length 1, rotated to as many axes as there are rows: all lengths, angles and distances stay the same, so
    no classifier here gives another answer, many times faster."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    left, scale, _ = np.linalg.svd(unit, full_matrices=False)
    return np.asarray(left * scale)


def svc(c: float) -> Fit:
    from sklearn.svm import LinearSVC

    return lambda x, y, test: LinearSVC(C=c, max_iter=20_000).fit(x, y).predict(test)


def logistic(c: float) -> Fit:
    from sklearn.linear_model import LogisticRegression

    return lambda x, y, test: LogisticRegression(C=c, max_iter=5000).fit(x, y).predict(test)


def neighbours(k: int) -> Fit:
    from sklearn.neighbors import KNeighborsClassifier

    return lambda x, y, test: KNeighborsClassifier(k, metric="cosine").fit(x, y).predict(test)


def recipe_accuracy(features: fl.Features, sequences: Sequence[str], seed: int) -> Right:
    """The default recipe as ``flamest-agent train`` has it, on one thread."""
    right = np.zeros(len(features), bool)
    for train, test in folds(sequences):
        run = fl.train(features[train], test=features[test], seed=seed, threads=1, progress=False, **RECIPE)
        right[test] = np.asarray(run.predicted) == features.y[test]
    return right


def row(name: str, found: Sequence[Right], note: str = "") -> dict[str, Any]:
    """A row of the table: the mean over the runs, with the interval of as many clips as there are."""
    clips, shares = len(found[0]), [float(right.mean()) for right in found]
    mean = float(np.mean(shares))
    low, high = wilson(mean * clips, clips)
    print(f"{name:34} {mean:6.1%}  [{low:.1%}, {high:.1%}]  {note}", flush=True)
    return {
        "accuracy": round(mean, 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "clips": clips,
        "by_seed": [round(share, 4) for share in shares] if len(shares) > 1 else None,
        "note": note,
    }


def measure(videos: Path, bundle: Path, store: Path) -> dict[str, Any]:
    """The whole table; the clips are extracted into ``store`` unless they are there."""
    from flamest.experiments.metadata import metadata_features
    from sklearn.ensemble import RandomForestClassifier

    opened = fl.open_bundle(bundle)
    features = opened.extract(videos, store=store, threads=1)
    sequences = [sequence_of(file) for file in features.files]
    y, whole = features.y, features.x.astype(np.float64)
    half = whole.shape[1] // 2
    unit = rotated(whole)
    grids: dict[str, dict[Any, Fit]] = {
        "LinearSVC": {c: svc(c) for c in C_VALUES},
        "logistic regression": {c: logistic(c) for c in C_VALUES},
        "nearest neighbours": {k: neighbours(k) for k in K_VALUES},
    }
    rows = {"default recipe": row("default recipe", [recipe_accuracy(features, sequences, seed) for seed in SEEDS])}
    for name, grid in grids.items():
        right, settings = chosen(unit, y, sequences, grid)
        rows[name] = row(name, [right], f"settings by fold: {settings}")
    for name, part in (("mean alone", whole[:, :half]), ("motion alone", whole[:, half:])):
        right, _ = chosen(rotated(part), y, sequences, grids["logistic regression"])
        rows[f"logistic regression, {name}"] = row(f"logistic regression, {name}", [right])
    table = metadata_features([videos / file for file in features.files])
    forests = [
        left_out(
            table,
            y,
            sequences,
            lambda x, y, test, seed=seed: RandomForestClassifier(100, random_state=seed).fit(x, y).predict(test),
        )
        for seed in SEEDS
    ]
    rows["metadata alone"] = row("metadata alone", forests, "frame size, length, frame rate and bytes; random forest")
    return {
        "bundle": {"extractor": opened.extractor, "fingerprint": opened.fingerprint, "width": opened.width},
        "clips": len(features),
        "sequences": len(set(sequences)),
        "classes": list(features.labels),
        "seeds": len(SEEDS),
        "default_recipe": {key: str(value) for key, value in RECIPE.items()},
        "rows": rows,
    }


RECIPE: dict[str, Any] = {"recipe": "default"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("build/bench/ut_interaction.sqlite"))
    options = parser.parse_args()
    print(store_result("ut_interaction", measure(options.videos, options.bundle, options.store)))


if __name__ == "__main__":
    main()
