"""The result of a simulated federation or of a training, and its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..agent.training.own_head import OwnHead, open_trainer
from ..base.console import counted
from ..base.errors import UsageError
from ..fedproto.head import HeadSpec, Params, params_sha256
from ..fedproto.records import Evaluation, RunSettings
from .models import Model
from .text import curve, table

MOST_SHOWN = 8  # silos of a run's table


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained model and how it came about: what ``simulate`` and ``train`` return.

    Accuracies are shares of the test clips, 0 to 1. Reading one of a run without test clips raises UsageError.

    Attributes:
        settings: The run's settings, as a coordinator would send them to its silos. What was handed in is not among
            them: of a strategy of one's own they hold the silos' terms, of a head its numbers of inputs and classes.
        strategy: Name of the strategy, one's own included; of a training ``centralised`` (several silos' clips) or
            ``local``.
        params: The final model's parameters by name, float32.
        evaluations: Loss (nats), correct predictions and count after each round; empty without test clips.
        class_counts: Training clips of each silo by class, int64 [silos, classes].
        silo_names: The silos, in the order of ``class_counts``.
        truth: Class of each test clip, int64.
        predicted: The final model's class of each test clip, int64.
        seconds: Wall clock of the run, measuring included.
        bytes_per_silo_round: Mean bytes of the model to a silo and its update back; 0 for a training.
        own_strategy: Whether the strategy was handed in; the model file then names it as ``own_strategy``.
    """

    settings: RunSettings
    strategy: str
    head: HeadSpec | OwnHead
    params: Params
    evaluations: tuple[Evaluation, ...]
    class_counts: npt.NDArray[np.int64]
    silo_names: tuple[str, ...]
    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    seconds: float
    bytes_per_silo_round: int
    own_strategy: bool = False

    @property
    def accuracy(self) -> float:
        """Accuracy of the final model."""
        self._need_test()
        return float((self.predicted == self.truth).mean())

    @property
    def curve(self) -> tuple[float, ...]:
        """Accuracy after each round."""
        self._need_test()
        return tuple(each.correct / each.count for each in self.evaluations)

    @property
    def best(self) -> float:
        """Accuracy of the best round."""
        return max(self.curve)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return self.settings.labels

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Test clips by true class (rows) and predicted class (columns): int64 [classes, classes]."""
        self._need_test()
        counts = np.zeros((len(self.labels), len(self.labels)), np.int64)
        np.add.at(counts, (self.truth, self.predicted), 1)
        return counts

    @property
    def by_class(self) -> dict[str, float]:
        """Accuracy on the test clips of each class, by label; classes without a test clip are left out."""
        confusion = self.confusion
        totals = confusion.sum(axis=1)
        return {
            label: float(confusion[number, number] / totals[number])
            for number, label in enumerate(self.labels)
            if totals[number]
        }

    @property
    def by_silo(self) -> dict[str, float]:
        """Accuracy to expect on new clips of each silo, by its name.

        The mean of ``by_class``, weighted by the silo's own shares of the classes; NaN where none of its classes has a
        test clip.
        """
        by_class = self.by_class
        of_class = np.array([by_class.get(label, np.nan) for label in self.labels])
        known = ~np.isnan(of_class)
        weights = self.class_counts[:, known].astype(np.float64)
        totals = weights.sum(axis=1)
        sums = weights @ of_class[known]
        return {
            name: float(sums[row] / totals[row]) if totals[row] else float("nan")
            for row, name in enumerate(self.silo_names)
        }

    @property
    def examples(self) -> dict[str, int]:
        """Training clips of each silo, by its name."""
        return dict(zip(self.silo_names, self.class_counts.sum(axis=1).tolist(), strict=True))

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each round, for ``pandas.DataFrame(run.history)``: round, loss, correct, count, accuracy."""
        return [
            {
                "round": number,
                "loss": each.loss,
                "correct": each.correct,
                "count": each.count,
                "accuracy": each.correct / each.count,
            }
            for number, each in enumerate(self.evaluations, start=1)
        ]

    @property
    def sha256(self) -> str:
        """Hash of the final parameters: the same for the same settings, rows and threads, in daemons too."""
        return params_sha256(self.params)

    @property
    def model(self) -> Model:
        """The final model, which labels features and videos."""
        metadata = {"settings": self.settings.encode().decode()}
        if self.own_strategy:
            metadata["own_strategy"] = self.strategy
        if not isinstance(self.head, HeadSpec):
            metadata["own_head"] = self.head.name
        if self.evaluations:
            metadata["accuracy"] = msgspec.json.encode([round(value, 6) for value in self.curve]).decode()
        return Model(
            self.head,
            self.params,
            self.labels,
            self.settings.fingerprint,
            self.settings.run,
            self.settings.rounds,
            metadata,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the final model to ``path`` as ``MODEL.safetensors``.

        ``load_model`` and ``flamest-agent predict`` read it. Settings and the accuracies of the rounds are in it too,
        and the name of a strategy that was handed in.

        Raises:
            UsageError: The head was handed in: only the built-in ones have a file format.
            StorageError: The file cannot be written; an older one stays whole.
        """
        self.model.save(path)

    def _need_test(self) -> None:
        if not len(self.truth):
            raise UsageError("this run was not measured: it had no test clips", fix="give it some, as test=test")

    def __repr__(self) -> str:
        silos = f", {counted(len(self.silo_names), 'silo')}" if self.settings.run == SIMULATION else ""
        head = "" if isinstance(self.head, HeadSpec) else f", head {self.head.name}"
        first = f"Run: {self.strategy}{head}, {counted(self.settings.rounds, 'round')}{silos}, {self.seconds:.1f} s"
        if not len(self.truth):
            return f"{first}; not measured (no test clips)"
        best = max(self.curve)
        lines = [
            first,
            f"accuracy {self.accuracy:.3f} on {counted(len(self.truth), 'test clip')} "
            f"(best {best:.3f} after round {self.curve.index(best) + 1}, chance {1 / len(self.labels):.3f})",
            f"rounds   {curve(self.curve)}",
        ]
        if silos:
            shown = list(self.by_silo.items())[:MOST_SHOWN]
            examples = self.examples
            lines.append(
                table(("silo", "clips", "accuracy"), [(name, examples[name], f"{value:.3f}") for name, value in shown])
            )
            if len(self.silo_names) > MOST_SHOWN:
                lines.append(f"… and {counted(len(self.silo_names) - MOST_SHOWN, 'more silo')}")
        return "\n".join(lines)


SIMULATION = "simulation"  # RunSettings.run of simulated federations


def class_counts(tables: Mapping[str, npt.NDArray[np.int64]], classes: int) -> npt.NDArray[np.int64]:
    """Return the rows of each silo by class, [silos, classes], from its classes [N]."""
    return np.stack([np.bincount(y, minlength=classes) for y in tables.values()]).astype(np.int64)


def predictions(head: HeadSpec | OwnHead, params: Params, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the class of each row of ``x``."""
    trainer = open_trainer(head, threads=1)
    parts = [scores.argmax(axis=1) for _, scores in trainer.logits_by_batch(params, x)]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
