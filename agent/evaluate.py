"""Evaluation of a model on a silo's own labelled clips, next to a model that the silo trains alone. Nothing leaves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..base.errors import DataError
from ..base.progress import progress_bar
from ..fedproto.model_file import ModelFile, read_model
from .answers import Answers
from .end_of_run import ALONE_MODEL
from .extraction.aliases import NO_ALIASES, LabelAliases
from .extraction.store import FeatureStore
from .extraction.store_records import StoredFeatures
from .training.adoption import rows_sha256
from .training.dataset import FeatureTable, SiloData, silo_data
from .training.gain import Gain, accuracy_interval, class_gains, paired_gain
from .training.local import LOCAL, train_locally
from .training.model_note import TrainingNote, own_head_of, training_note
from .training.trained_clips import trained_clips
from .training.trainer import HeadTrainer

BINS = 15  # of the calibration error


@dataclass(frozen=True)
class EvaluationRequest:
    """The options of ``flamest-agent evaluate``."""

    store: Path
    precision: str | None = None
    own: Path | None = None  # the model trained alone; None: it is trained now, where the model says how
    alone: bool = True  # False: no model trained alone is looked at
    all_clips: bool = False  # also those that the model was trained on
    hold_out: float | None = None  # share of groups and seed, where the model does not say which clips were held out
    seed: int | None = None
    threads: int | None = None
    aliases: LabelAliases = NO_ALIASES


@dataclass(frozen=True, eq=False)
class _Clips:
    """The clips to evaluate on."""

    table: FeatureTable
    names: tuple[str, ...]  # as a person knows them
    identities: tuple[str, ...]
    groups: tuple[str, ...]
    split: tuple[int, float, bool] | None  # seed, share and independent of the hold-out; None: all clips
    ignored: int
    left_out: int  # held-out clips of groups that the model's run has trained on
    train: FeatureTable  # the clips that are not held out


@dataclass(frozen=True, eq=False)
class _Scores:
    """A model's answers on N clips."""

    predicted: npt.NDArray[np.int64]  # [N], classes of the evaluated model; -1: a class that it does not know
    names: tuple[str, ...]  # of the predicted classes
    probability: npt.NDArray[np.float64]  # [N], of the predicted class

    def correct(self, clips: _Clips) -> npt.NDArray[np.bool_]:
        return np.asarray(self.predicted == clips.table.y)


def evaluate_on_store(model_path: Path, request: EvaluationRequest) -> dict[str, Any]:
    """Return the figures of ``evaluate --json``.

    Raises DataError: ``no_such_features`` and others as the store, ``no_clips`` when none is labelled with a class of
    the model or none is held out, ``other_split`` for an own model that was trained on the clips to evaluate on.
    """
    model = read_model(model_path)
    note = training_note(model)
    with FeatureStore.open(request.store, create=False, read_only=True) as store:
        stored = store.read(model.fingerprint, request.precision)
    clips = _clips(model, note, stored, request, trained_clips(model_path.parent, model.run))
    shared = _scores(model, model.labels, clips, request.threads)
    own_model, why = _own_model(model_path, model, note, clips, request)
    own = None if own_model is None else _scores(own_model, model.labels, clips, request.threads)
    return {
        "model": str(model_path),
        "run": model.run,
        "round": model.round,
        "clips": len(clips.table),
        "groups": len(set(clips.groups)),
        "held_out": clips.split is not None,
        "ignored": clips.ignored,
        "left_out": clips.left_out,
        **_figures(shared, clips),
        "own": None if own is None else _figures(own, clips),
        "no_own": why,
        "gain": None if own is None else _gain(paired_gain(shared.correct(clips), own.correct(clips), clips.groups)),
        "classes": _classes(model.labels, shared, own, clips),
        "wrong": _wrong(model.labels, shared, own, clips),
    }


def calibration_error(probability: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> float:
    """Return the expected calibration error of predictions: 0 to 1 (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    ``probability`` [N]: of the predicted class. Fifteen bins of one width; in each the difference between the mean
    probability and the share of correct predictions, weighted by clips.
    """
    place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    difference = np.bincount(place, probability - correct, BINS)
    return float(np.abs(difference).sum() / len(probability))


def _clips(
    model: ModelFile,
    note: TrainingNote | None,
    stored: StoredFeatures,
    request: EvaluationRequest,
    trained: Collection[str],
) -> _Clips:
    share = request.hold_out if request.hold_out is not None else note.hold_out if note else 0.0
    seed = request.seed if request.seed is not None else note.seed if note else 0
    independent = note is not None and note.independent
    every = silo_data(stored, model.labels, hold_out=share, seed=seed, independent=independent, aliases=request.aliases)
    data = every.untrained(trained)
    if request.all_clips or share == 0.0:
        data = every = silo_data(stored, model.labels, hold_out=0.0, seed=0, aliases=request.aliases)
        rows, table = data.rows, data.train
    else:
        rows, table = data.held_out_rows, data.held_out
    left_out = len(every.held_out) - len(data.held_out)
    if not len(table):
        raise _no_clips(data, request, left_out)
    names = tuple(stored.paths[row] or stored.clips[row] for row in rows.clips)
    split = None if table is not data.held_out else (seed, share, independent)
    return _Clips(table, names, rows.identities, rows.groups, split, data.ignored, left_out, data.train)


def _no_clips(data: SiloData, request: EvaluationRequest, left_out: int) -> DataError:
    if left_out:
        return DataError(
            f"the model's run has trained on the groups of all {left_out} clips that are held out now",
            fix="--all evaluates on all clips, also those that the model was trained on; after the next run there are "
            "others, if no clips come or go meanwhile",
            code="no_clips",
        )
    if len(data.train):
        return DataError(
            f"none of the {len(data.train)} labelled clips is held out: they are of one group, or of few",
            fix="--all evaluates on all clips, also those that the model was trained on",
            code="no_clips",
        )
    return DataError(
        f"{request.store} has no clip with a label that the model knows ({data.ignored} have none or another one)",
        fix="label the clips with the model's classes ([labels.alias] in agent.toml gives other words for them)",
        code="no_clips",
    )


def _scores(model: ModelFile, classes: Sequence[str], clips: _Clips, threads: int | None) -> _Scores:
    """Return a model's answers; its classes may be others than ``classes``, those of the evaluated model."""
    with np.errstate(all="ignore"):
        probability = Answers(model, threads=threads).probabilities(clips.table.x)
    probability = np.where(np.isfinite(probability), probability, 0.0)
    best = probability.argmax(axis=1)
    number = {label: index for index, label in enumerate(classes)}
    known = np.array([number.get(label, -1) for label in model.labels])
    names = tuple(model.labels[index] for index in best)
    return _Scores(known[best], names, probability[np.arange(len(best)), best])


def _own_model(
    path: Path, model: ModelFile, note: TrainingNote | None, clips: _Clips, request: EvaluationRequest
) -> tuple[ModelFile | None, str]:
    """Return the model that this silo trains alone, which its daemon may have left next to ``path``; None: and why."""
    if not request.alone:
        return None, "not asked for"
    if request.own is not None:
        return _given_own(model, clips, request.own), ""
    if model.run == LOCAL:
        return None, "the model was trained alone itself"
    if note is None:
        return None, "the model does not say how it was trained; --own FILE gives one of flamest-agent train"
    if clips.split is None:
        return None, "no clips are held out, on which it could be compared"
    kept, rows = path.with_name(ALONE_MODEL), rows_sha256(clips.train)
    if (known := own_head_of(kept, model.head, model.labels, model.fingerprint, note, rows)) is not None:
        return ModelFile(model.head, known, model.labels, model.fingerprint, LOCAL, note.rounds), ""
    trainer = HeadTrainer(model.head, threads=request.threads)
    nothing = clips.train.rows(np.empty(0, np.int64))
    with progress_bar("training alone", note.rounds, unit="rounds") as progress:
        trained = train_locally(
            trainer,
            clips.train,
            nothing,
            note.train,
            rounds=note.rounds,
            seed=note.seed,
            on_round=lambda _: progress.advance(),
        )
    return ModelFile(model.head, trained.params, model.labels, model.fingerprint, LOCAL, note.rounds), ""


def _given_own(model: ModelFile, clips: _Clips, path: Path) -> ModelFile:
    own = read_model(path)
    if own.fingerprint != model.fingerprint:
        raise DataError(
            f"{path} was trained on features of bundle {own.fingerprint[:12]}, the model on {model.fingerprint[:12]}",
            fix="train it on the same store: flamest-agent train",
            code="other_bundle",
        )
    trained = training_note(own)
    if clips.split is not None and trained is not None and trained.split != clips.split:
        seed, share, _ = clips.split
        raise DataError(
            f"{path} was trained with other clips held out: on some of those that the models would be compared on",
            fix=f"train it again with --seed {seed} --hold-out {share:g}, or leave out --own",
            code="other_split",
        )
    return own


def _figures(scores: _Scores, clips: _Clips) -> dict[str, Any]:
    correct = scores.correct(clips)
    low, high = accuracy_interval(correct, clips.groups)
    return {
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "correct": int(correct.sum()),
        "calibration_error": calibration_error(scores.probability, correct),
    }


def _gain(gain: Gain) -> dict[str, Any]:
    return dict(msgspec.to_builtins(gain))


def _classes(labels: Sequence[str], shared: _Scores, own: _Scores | None, clips: _Clips) -> dict[str, Any]:
    """Return the figures of every class that has clips, in the model's order."""
    y, right = clips.table.y, shared.correct(clips)
    gains = {} if own is None else class_gains(right, own.correct(clips), clips.groups, y)
    found: dict[str, Any] = {}
    for label in np.unique(y).tolist():
        rows = y == label
        figures: dict[str, Any] = {"clips": int(rows.sum()), "correct": int(right[rows].sum())}
        figures["accuracy"] = figures["correct"] / figures["clips"]
        if own is not None:
            figures["own_correct"] = int(own.correct(clips)[rows].sum())
            figures["gain"] = _gain(gains[label]) if label in gains else None
        found[labels[label]] = figures
    return found


def _wrong(labels: Sequence[str], shared: _Scores, own: _Scores | None, clips: _Clips) -> list[dict[str, Any]]:
    """Return the clips that the model predicts wrongly, the most certain of its errors first."""
    rows = np.flatnonzero(~shared.correct(clips))
    return [
        {
            "clip": clips.identities[row],
            "name": clips.names[row],
            "label": labels[clips.table.y[row]],
            "predicted": shared.names[row],
            "probability": float(shared.probability[row]),
            **({} if own is None else {"own": own.names[row]}),
        }
        for row in sorted(rows.tolist(), key=lambda row: (-shared.probability[row], clips.names[row]))
    ]
