"""Figures 2, 3 and 4: accuracy over rounds and epochs, and the embeddings of some classes in the plane."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, MissingExtra, UsageError
from .features import NAMES, READY, ExperimentData, table_name
from .inputs import ExperimentInputs
from .jobs import Job, Results, finished
from .table_output import fact_columns
from .table_specs import TABLE_ORDER, seeded
from .tables import EXTERNAL, Row, TableResult, estimate, interval_notes

MIN_CLIPS_SHOWN = 4  # clips of each class
Points = npt.NDArray[np.float32]
Projection = Callable[[Points], Points]  # [n, D] -> [n, 2]
# The paper's classes (section 5.7), as the data sets name their folders.
PAPER_CLASSES = {"ucf101": ("ApplyLipstick", "Archery"), "hmdb51": ("catch", "cartwheel")}


@dataclass(frozen=True)
class CurveSpec:
    """Specification of a figure of accuracy per step: the runs of each curve, and curves of result files."""

    name: str
    title: str
    across: str
    curves: dict[str, tuple[Job, ...]]
    external: dict[str, tuple[float, ...]]
    notes: tuple[str, ...] = ()

    @property
    def jobs(self) -> list[Job]:
        return [job for jobs in self.curves.values() for job in jobs]


def figure2(inputs: ExperimentInputs) -> CurveSpec:
    """The global model over 50 rounds, on the test and on the training clips."""
    rounds = inputs.settings.scale.figure_rounds
    job = inputs.job(rounds=rounds)
    on_train = msgspec.structs.replace(job, measured_on="train")
    name = table_name(inputs.data.main)
    curves = {f"{name}, test": seeded(inputs, job), f"{name}, training clips": seeded(inputs, on_train)}
    return CurveSpec("figure2", f"Figure 2: {name} over {rounds} rounds, IID", "round", curves, {})


def figure3(inputs: ExperimentInputs) -> CurveSpec:
    """Centralised training accuracy over the epochs, with ActionCLIP's where its result file is given."""
    train = msgspec.structs.replace(inputs.settings.train, epochs=1)
    job = inputs.job(
        partition=inputs.iid(1), rounds=inputs.settings.scale.central_epochs, train=train, measured_on="train"
    )
    actionclip = inputs.external.actionclip
    notes: tuple[str, ...] = (
        f"Adam's moments are reset after every epoch here (in table3 after every {inputs.settings.train.epochs}).",
    )
    notes += (
        ()
        if actionclip
        else ("ActionCLIP: not run (run flamest-experiment actionclip and give its folder as --results).",)
    )
    external = {"ActionCLIP (its own epochs)": actionclip.train_curve} if actionclip and actionclip.train_curve else {}
    curves = {table_name(inputs.data.main): seeded(inputs, job)}
    return CurveSpec("figure3", "Figure 3: training accuracy, centralised", "epoch", curves, external, notes)


def curve_table(spec: CurveSpec, results: Results) -> tuple[TableResult, dict[str, list[tuple[float, ...]]]]:
    """Best and last of each curve as rows, and the curves [runs][steps]."""
    curves = {name: [run.curve for run in finished(results, jobs)] for name, jobs in spec.curves.items()}
    curves = {name: runs for name, runs in curves.items() if runs}
    rows = [_curve_row(name, runs) for name, runs in curves.items()]
    for name, curve in spec.external.items():
        rows.append(Row(name, 100 * max(curve), 100 * curve[-1], None, EXTERNAL, seeds=1))
        curves[name] = [curve]
    return TableResult(spec.name, spec.title, tuple(rows), (*spec.notes, *interval_notes(rows))), curves


def curve_csv(across: str, result: TableResult, curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """A line per step of every curve and run, accuracy 0 to 1; the last columns name the split."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names, facts = fact_columns(result)
    writer.writerow([across, "curve", "run", "accuracy", *names])
    for name, runs in curves.items():
        for run, curve in enumerate(runs):
            writer.writerows([step, name, run, f"{value:.6f}", *facts] for step, value in enumerate(curve, start=1))
    return out.getvalue()


def _curve_row(name: str, runs: Sequence[Sequence[float]]) -> Row:
    best, last = estimate([100 * max(run) for run in runs]), estimate([100 * run[-1] for run in runs])
    assert best is not None
    assert last is not None
    return Row(
        name, best.mean, last.mean, None, best_interval=best.interval, last_interval=last.interval, seeds=len(runs)
    )


@dataclass(frozen=True, eq=False)
class Panel:
    """The clips of the chosen classes in one embedding."""

    extractor: str
    points: Points  # float32 [n, 2]
    labels: tuple[str, ...]
    silhouette: float  # of the embedding itself, −1 to 1: separation of the classes


def classes_to_show(inputs: ExperimentInputs) -> tuple[tuple[str, ...], ...]:
    """Pairs of classes: those of --classes, the paper's, or for OBJECT_MOTION classes one pair that shares the
    object and one that shares the motion. Raises UsageError on an unknown class."""
    labels = inputs.data.labels
    asked = inputs.settings.classes or PAPER_CLASSES.get(inputs.settings.dataset, ())
    if inputs.settings.classes and len(set(asked)) < 2:
        raise UsageError(
            f"--classes {','.join(asked)}: expected two classes or more, separated by commas", fix="--classes walk,run"
        )
    if asked:
        missing = sorted(set(asked) - set(labels))
        if not missing:
            return (tuple(asked),)
        if inputs.settings.classes:
            raise UsageError(
                f"there are no classes {missing}; known: {', '.join(labels)}", fix="--classes with two of those"
            )
    first, *others = labels
    thing, _, motion = first.partition("_")
    same_object = next((label for label in others if label.partition("_")[0] == thing and motion), None)
    same_motion = next((label for label in others if label.partition("_")[2] == motion and motion), None)
    if same_object and same_motion:
        return ((first, same_object), (first, same_motion))
    return ((labels[0], labels[1]),)


def check_classes(inputs: ExperimentInputs) -> None:
    """Check that each class of the figure has enough clips. Raises DataError, UsageError as classes_to_show."""
    data = inputs.data
    for name in (name for pair in classes_to_show(inputs) for name in pair):
        clips = int((data.y == data.labels.index(name)).sum())
        if clips < MIN_CLIPS_SHOWN:
            raise DataError(
                f"class {name} has {clips} clips, figure 4 needs {MIN_CLIPS_SHOWN} or more of each",
                fix="choose two classes with more clips: --classes A,B",
                code="too_few_clips",
            )


def embedding_panels(data: ExperimentData, classes: Sequence[str], project: Projection) -> list[Panel]:
    """A panel for every extractor whose features are ready."""
    from sklearn.metrics import silhouette_score

    indices = [data.labels.index(name) for name in classes]
    rows = np.flatnonzero(np.isin(data.y, indices))
    extractors = [name for name in TABLE_ORDER if _known(name) and data.state(name) == READY] or [data.main]
    panels = []
    for extractor in extractors:
        x = data.x(extractor)[rows]
        labels = tuple(data.labels[number] for number in data.y[rows])
        panels.append(Panel(extractor, project(x), labels, float(silhouette_score(x, labels))))
    return panels


def panel_table(panels: Sequence[tuple[tuple[str, ...], list[Panel]]]) -> TableResult:
    """The silhouettes as a table, because a picture alone proves little."""
    rows = [
        Row(f"{table_name(panel.extractor)}: {' / '.join(classes)}", None, None, None, f"{panel.silhouette:.3f}")
        for classes, found in panels
        for panel in found
    ]
    notes = (
        "The number is the silhouette of the two classes in the embedding itself (−1 to 1, higher is further apart), "
        "not in the picture. The paper gives none.",
    )
    return TableResult("figure4", "Figure 4: embeddings of two classes, by UMAP", tuple(rows), notes)


def umap_projection(x: Points) -> Points:
    """UMAP to the plane (McInnes et al. 2018), seeded; 15 neighbours, fewer where there are fewer clips."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba and umap warn of their own internals
        try:
            from umap import UMAP
        except ImportError as error:
            raise MissingExtra("umap-learn", extra="experiments") from error
        neighbours = max(2, min(15, len(x) - 1))
        mapper = UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1, init="random" if len(x) < 10 else "spectral")
        return np.asarray(mapper.fit_transform(x), dtype=np.float32)


def pca_projection(x: Points) -> Points:
    """The two main axes: quick, for tests and for machines without umap-learn."""
    centred = x - x.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    return np.asarray(centred @ axes.T, dtype=np.float32)


def _known(extractor: str) -> bool:
    return all(part in NAMES for part in extractor.split("+"))
