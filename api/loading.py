"""Features from a file: a feature store or an ``.npz`` file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..base.errors import DataError
from .features import ClipColumns, FeatureKind, Features, numbered_features

MINIWORLD = "miniworld"  # in place of a path: the features that come with the package


def load(path: str | os.PathLike[str], *, fingerprint: str | None = None, precision: str | None = None) -> Features:
    """Load features from a file.

    Args:
        path: A feature store (``features.sqlite``, which ``flamest-agent extract`` fills), or an ``.npz`` file as
            ``flamest-agent features`` writes it: ``x`` float [N, D] and ``y`` text [N], and if wanted ``group``,
            ``clip`` and ``caption`` text [N]. ``miniworld`` stands for the features that come with this package: 300
            rendered clips of 25 classes, for trying things out.
        fingerprint: Which features, where a store holds several kinds; the beginning is enough.
        precision: The same for their precision.

    Returns:
        The features, in a fixed order.

    Raises:
        DataError: There is no such file, it is damaged, or holds several kinds of features.
        MissingExtra: A package of the extra ``agent`` is not installed.
    """
    file = Path(path)
    if str(path) == MINIWORLD and not file.exists():
        from ..experiments.miniworld.sample import SAMPLE

        file = SAMPLE
    if file.is_dir():
        raise DataError(
            f"{file} is a folder, expected a feature store or an .npz file",
            fix="extract a folder of videos with: fl.open_bundle(BUNDLE).extract(FOLDER)",
            code="not_a_file",
        )
    return _load_npz(file) if file.suffix == ".npz" else _load_store(file, fingerprint, precision)


def _load_store(path: Path, fingerprint: str | None, precision: str | None) -> Features:
    from ..agent.extraction.store import FeatureStore

    with FeatureStore.open(path, create=False, read_only=True) as store:
        stored = store.read(fingerprint, precision)
    return numbered_features(
        np.ascontiguousarray(stored.x, dtype=np.float32),
        ClipColumns(stored.labels, stored.groups, stored.clips, stored.captions),
        FeatureKind(stored.fingerprint, stored.precision, stored.vlm_width),
    )


def _load_npz(path: Path) -> Features:
    from ..agent.extraction.npz import read_npz
    from ..agent.extraction.npz_arrays import open_npz

    imported = read_npz(path, "features")
    kind = FeatureKind(imported.fingerprint, imported.precision)
    with open_npz(path, ("fingerprint", "precision", "vlm_width")) as file:
        if len(file.arrays) == 3 and all(declared.shape == () for declared in file.arrays.values()):
            named = str(file.read("fingerprint", np.str_)), str(file.read("precision", np.str_))
            kind = FeatureKind(*named, vlm_width=int(file.read("vlm_width", np.int64)))
    rows = [row for _, row in imported]
    ids = imported.columns.get("clip")
    columns = ClipColumns(
        [row.clip.label for row in rows],
        [row.clip.group or row.clip.path.stem for row in rows],
        [row.clip.sha256 for row in rows] if ids is None else ids.tolist(),
        [row.caption for row in rows],
    )
    return numbered_features(imported.x, columns, kind)
