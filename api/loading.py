"""Features from a file: a feature store or an ``.npz`` file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..agent.extraction.aliases import NO_ALIASES, LabelAliases, alias_problems
from ..base.errors import DataError, UsageError
from ..base.files import printable_path
from .checks import fixes, path_of, shown
from .features import ClipColumns, FeatureKind, Features, numbered_features

ZIP, SQLITE, NPY = b"PK", b"SQLite format 3\0", b"\x93NUMPY"  # the first bytes of files
STORES = (".sqlite", ".db")
MINIWORLD = "miniworld"  # in place of a path: the features that come with the package


def load(
    path: str | os.PathLike[str],
    *,
    fingerprint: str | None = None,
    precision: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Features:
    """Load features from a file.

    Args:
        path: A feature store (``features.sqlite``, which ``flamest-agent extract`` fills), or an ``.npz`` file as
            ``flamest-agent features`` writes it: ``x`` float [N, D] and ``y`` text [N], and if wanted ``group``,
            ``clip``, ``caption`` and ``file`` text [N], and ``start_s`` and ``end_s`` of segments. ``miniworld`` stands
            for the features that come with this package: 300 rendered clips of 25 classes, for trying things out.
        fingerprint: Which features, where a store holds several kinds; the beginning is enough. Another file has
            to be of it.
        precision: The same for their precision.
        aliases: The class for labels that are called otherwise, ``{"Sturz": "fall"}``, as ``[labels.alias]`` of
            agent.toml gives it to a run. Labels without one stay as they are.

    Returns:
        The features, in a fixed order.

    Raises:
        UsageError: ``path`` is no path, or another argument is not what it should be.
        DataError: There is no such file, it is damaged or of another kind, or it holds several kinds of features.
        StorageError: The file cannot be read.
        MissingExtra: A package of the extra ``agent`` is not installed.
    """
    file = path_of("path", path, like="fl.load('features.sqlite')")
    for name, value in (("fingerprint", fingerprint), ("precision", precision)):
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} is {shown(value)}, expected a text", fix="leave it out, or give its beginning")
    words = _checked_aliases(aliases)
    if str(path) == MINIWORLD and not file.exists():
        from ..experiments.miniworld.sample import SAMPLE

        file = SAMPLE
    if file.is_dir():
        raise DataError(
            f"{file} is a folder, expected a feature store or an .npz file",
            fix="extract a folder of videos with: fl.open_bundle(BUNDLE).extract(FOLDER)",
            code="not_a_file",
        )
    if _is_npz(file):
        return _of_kind(file, _load_npz(file, words), fingerprint, precision)
    with fixes({"several_kinds": "choose one: fl.load(path, fingerprint='…', precision='fp32')"}):
        return _load_store(file, words, fingerprint, precision)


def _checked_aliases(given: Mapping[str, str] | None) -> LabelAliases:
    like = "aliases={'Sturz': 'fall'}"
    if given is None:
        return NO_ALIASES
    if not isinstance(given, Mapping) or not all(isinstance(word, str) for pair in given.items() for word in pair):
        raise UsageError(f"aliases is {shown(given)}, expected a class for each label", fix=f"write {like}")
    if problems := alias_problems(given):
        raise UsageError(f"aliases: {'; '.join(problems)}", fix=f"write {like}")
    return LabelAliases(given)


def _is_npz(path: Path) -> bool:
    """Return whether the file is an ``.npz`` by its first bytes. Raises DataError for what is no store either."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:  # reported by the reader that its name asks for
        return path.suffix == ".npz"
    if start.startswith(ZIP):
        return True
    if start.startswith(SQLITE) or path.suffix in STORES or not start:
        return path.suffix == ".npz" and not start.startswith(SQLITE)
    if path.suffix == ".npz":
        return True
    what, fix = "neither a feature store nor an .npz file", "give one of those, or make features from your arrays"
    if start.startswith(NPY):
        what, fix = "a single array (.npy)", "f = fl.Features.from_arrays(numpy.load(path), labels)"
    elif start[8:9] == b"{":
        what, fix = "a model (.safetensors)", "model = fl.load_model(path)"
    raise DataError(f"{printable_path(path)} is {what}, expected features", fix=fix)


def _of_kind(path: Path, found: Features, fingerprint: str | None, precision: str | None) -> Features:
    """Raise DataError (``no_such_features``) where the features of a file are not those that are asked for."""
    if found.fingerprint.startswith(fingerprint or "") and precision in (None, found.precision):
        return found
    raise DataError(
        f"{printable_path(path)} holds no features of fingerprint {fingerprint or 'any'}, precision "
        f"{precision or 'any'}; it has {found.fingerprint}, {found.precision}",
        fix="leave fingerprint and precision out, or load the file that has them",
        code="no_such_features",
    )


def _load_store(path: Path, aliases: LabelAliases, fingerprint: str | None, precision: str | None) -> Features:
    from ..agent.extraction.store import FeatureStore

    with FeatureStore.open(path, create=False, read_only=True) as store:
        stored = store.read(fingerprint, precision)
    return numbered_features(
        np.ascontiguousarray(stored.x, dtype=np.float32),
        ClipColumns(
            aliases.all_of(stored.labels),
            stored.groups,
            stored.clips,
            stored.captions,
            stored.files,
            stored.segments,
        ),
        FeatureKind(stored.fingerprint, stored.precision, stored.vlm_width),
    )


def _load_npz(path: Path, aliases: LabelAliases) -> Features:
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
        aliases.all_of(row.clip.label for row in rows),
        [row.clip.group or row.clip.path.stem for row in rows],
        [row.clip.sha256 for row in rows] if ids is None else ids.tolist(),
        [row.caption for row in rows],
        imported.columns["file"].tolist() if "file" in imported.columns else (),
        imported.segments,
    )
    return numbered_features(imported.x, columns, kind)
