"""Training without a federation: one silo's own model, or the centralised baseline on all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.errors import DataError
from ...base.progress import progress_bar
from ...fedproto.calibration import make_calibration
from ...fedproto.head import Params
from ...fedproto.model_file import ModelFile, write_model
from ...fedproto.recipes import Recipe, recipe_settings
from ...fedproto.records import Evaluation, TrainSettings
from ..extraction.aliases import NO_ALIASES, LabelAliases
from ..extraction.store import FeatureStore
from .dataset import FeatureTable, silo_data
from .federated import RoundKey, run_round
from .model_note import TrainingNote
from .trainer import HeadTrainer, Trainer, evaluate

LOCAL = "local"  # in place of a silo's name in the shuffles' seed


@dataclass(frozen=True, eq=False)
class LocalModel:
    """The model after the last round, and its evaluations along the way."""

    params: Params
    epochs: int
    evaluations: tuple[Evaluation, ...]  # on the test rows, after each round; empty without test rows

    @property
    def last(self) -> float:
        """Top-1 accuracy after the last round, 0 to 1."""
        return self.evaluations[-1].correct / self.evaluations[-1].count

    @property
    def best(self) -> float:
        return max(evaluation.correct / evaluation.count for evaluation in self.evaluations)


def train_locally(
    trainer: Trainer,
    train: FeatureTable,
    test: FeatureTable,
    settings: TrainSettings,
    *,
    rounds: int,
    seed: int,
    on_round: Callable[[int], None] = lambda _: None,
) -> LocalModel:
    """Train ``rounds`` × ``settings.epochs`` epochs from the head that a run of ``seed`` would start with.

    The counterpart of a federated run of as many rounds with the same work: in each the optimiser starts again, and
    after each the model is evaluated on ``test``.
    """
    params = trainer.first_params(seed)
    evaluations = []
    for number in range(1, rounds + 1):
        params = run_round(trainer, params, train, settings, RoundKey(seed, number, LOCAL)).params
        if len(test):
            evaluations.append(evaluate(trainer, params, test))
        on_round(number)
    return LocalModel(params, rounds * settings.epochs, tuple(evaluations))


@dataclass(frozen=True)
class LocalRequest:
    """The options of ``flamest-agent train``."""

    store: Path
    fingerprint: str | None
    precision: str | None
    recipe: Recipe
    given: Mapping[str, Any]  # settings of a run's table that the recipe does not fill in: ``hidden``, ``train``
    rounds: int
    hold_out: float  # share of groups
    seed: int
    threads: int | None
    aliases: LabelAliases = NO_ALIASES  # the model's classes are the run's words


def train_from_store(request: LocalRequest, out: Path) -> dict[str, Any]:
    """Train on a store's labelled clips and write the model to ``out``.

    Returns the figures of ``--json``. Raises DataError when fewer than two classes are labelled.
    """
    with FeatureStore.open(request.store, create=False, read_only=True) as store:
        stored = store.read(request.fingerprint, request.precision)
    labels = tuple(sorted({label for label in request.aliases.all_of(stored.labels) if label is not None}))
    if len(labels) < 2:
        raise DataError(
            f"{request.store} holds clips of {len(labels)} classes, training needs 2 or more",
            fix="label the clips: put them into folders named by class, or write a labels.csv, and extract again",
        )
    data = silo_data(stored, labels, hold_out=request.hold_out, seed=request.seed, aliases=request.aliases)
    width = stored.x.shape[1]
    blocks = (stored.vlm_width, width - stored.vlm_width) if 0 < stored.vlm_width < width else ()
    chosen = recipe_settings(request.recipe, width, len(labels), blocks=blocks, given=request.given)
    trainer = HeadTrainer(chosen.head, threads=request.threads)
    with progress_bar("training", request.rounds, unit="rounds") as progress:
        model = train_locally(
            trainer,
            data.train,
            data.held_out,
            chosen.train,
            rounds=request.rounds,
            seed=request.seed,
            on_round=lambda _: progress.advance(),
        )
    note = TrainingNote(request.seed, request.hold_out, request.rounds, chosen.train)
    calibration = make_calibration(trainer.logits(model.params, data.held_out.x), data.held_out.y)
    names = (labels, stored.fingerprint, LOCAL, request.rounds, note.as_metadata())
    write_model(out, ModelFile(trainer.spec, model.params, *names, calibration=calibration))
    measured = len(data.held_out) > 0
    return {
        "model": str(out),
        "accuracy": model.last if measured else None,
        "best_accuracy": model.best if measured else None,
        "chance": 1 / len(labels),
        "classes": len(labels),
        "examples": len(data.train),
        "held_out": len(data.held_out),
        "ignored": data.ignored,
        "recipe": request.recipe,
        "rounds": request.rounds,
        "epochs": model.epochs,
        "parameters": trainer.spec.parameters,
        "temperature": None if calibration is None else calibration.temperature,
        "coverage": None if calibration is None else calibration.coverage,
    }
