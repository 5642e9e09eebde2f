"""Inputs of an experiment: features, settings and results of other commands.

The defaults are the paper's settings on its data sets and smaller ones on the mini-world.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...base.errors import FlamestError
from ...fedproto.records import Strategy, TrainSettings
from ..datasets import groups_digest
from ..miniworld.videos import EXPERIMENT_TEST_SHARE
from .external_runs import ExternalRun, ExternalRuns
from .features import ExperimentData
from .jobs import Job, PartitionRule
from .printed_values import HMDB51, MINIWORLD, UCF101
from .splits import DataSplit, SplitRule, split_data

PAPER_TRAIN = TrainSettings()  # section 4: 5 epochs, batch 128, Adam 0.01, weight decay 1e-4


@dataclass(frozen=True)
class Scale:
    """Defaults of a data set."""

    rounds: int
    seeds: int
    train: TrainSettings
    split: SplitRule
    central_epochs: int = 80  # the paper's, Table 3
    figure_rounds: int = 50  # Figure 2
    folds: int = 20  # cross-validation


# A silo of the mini-world has 100 clips, one of UCF101 2,600: batches of 32 give it four steps an
# epoch instead of one. At a rate of 0.01 the models of such small silos drift apart and their mean is poor.
SMALL_TRAIN = TrainSettings(batch_size=32, learning_rate=0.001)
SCALES: dict[str, Scale] = {
    UCF101: Scale(80, 1, PAPER_TRAIN, SplitRule("paper")),
    HMDB51: Scale(80, 1, PAPER_TRAIN, SplitRule("paper")),
    MINIWORLD: Scale(20, 5, SMALL_TRAIN, SplitRule("groups", share=EXPERIMENT_TEST_SHARE)),
}
OTHER = Scale(20, 5, SMALL_TRAIN, SplitRule("groups"))


@dataclass(frozen=True)
class Settings:
    """A command's settings, defaults filled in."""

    dataset: str  # "" for features of no known data set
    scale: Scale
    rounds: int
    seeds: int
    train: TrainSettings
    split: SplitRule
    silos: int = 4
    beta: float = 0.6
    results: Path | None = None  # of kd.json and actionclip.json
    videos: Path | None = None
    classes: tuple[str, ...] = ()  # figure 4
    strategy: Strategy | None = None  # None: the experiment's own, FedAvg where it does not compare strategies


@dataclass(frozen=True)
class ExperimentInputs:
    """Features, settings and results of other commands: all that a table's specification reads."""

    data: ExperimentData
    settings: Settings
    external: ExternalRuns = field(default_factory=ExternalRuns)

    @property
    def paper(self) -> str:
        """The data set whose printed numbers are shown next to ours; "" where the paper has none."""
        return self.settings.dataset if self.settings.dataset in (UCF101, HMDB51) else ""

    def split(self) -> DataSplit:
        """The rows that the settings train on and test with. Raises DataError and UsageError as split_data."""
        settings = self.settings
        return split_data(self.data, settings.split, dataset=settings.dataset, videos=settings.videos)

    def iid(self, silos: int | None = None) -> PartitionRule:
        """An even split over ``silos`` (the settings' number)."""
        return PartitionRule("iid", silos or self.settings.silos)

    def dirichlet(self, beta: float | None = None, silos: int | None = None) -> PartitionRule:
        """A Dirichlet split; beta and number of silos are the settings' by default."""
        return PartitionRule("dirichlet", silos or self.settings.silos, beta or self.settings.beta)

    def job(self, extractor: str = "", **changes: object) -> Job:
        """The default run on ``extractor`` (the main one by default), with ``changes`` to Job's fields."""
        base = {
            "partition": self.iid(),
            "split": self.settings.split,
            "train": self.settings.train,
            "rounds": self.settings.rounds,
            "strategy": self.settings.strategy or Strategy(),
        }
        return Job(extractor or self.data.main, **{**base, **changes})  # type: ignore[arg-type]

    def split_warning(self, run: ExternalRun) -> str:
        """Reason not to compare the run with this table; empty where both hold out the same groups."""
        theirs = run.details.split.test_groups_sha256
        if not theirs:
            return "its result does not say which clips it was tested on"
        try:
            split = self.split()
        except FlamestError:  # the table's own runs report it
            return ""
        groups = {self.data.groups[row] for row in split.test}
        kind = self.settings.split.kind
        if kind == "groups" and groups_digest(groups) == theirs:
            return ""
        return f"not tested on this table's test clips ({len(split.test):,} clips, split {kind})"

    def external_note(self, run: ExternalRun) -> str:
        """Note of the run's row: the warning where its test differs, then networks and clips."""
        warning = self.split_warning(run)
        description = f"{run.scale} networks, one seed, {run.description}" if run.scale else run.description
        return f"WARNING: {warning}; {description}" if warning else description

    def split_warnings(self) -> list[str]:
        """A line for the terminal per run with a warning, with the command that makes it comparable."""
        lines = []
        for run in self.external.present:
            warning = self.split_warning(run)
            if warning:
                command = f"flamest-experiment {run.name.lower()} --test-share {self.settings.split.share:g}"
                fix = f"; to compare: {command}" if self.settings.split.kind == "groups" else ""
                lines.append(f"{run.name}: {warning}{fix}")
        return lines
