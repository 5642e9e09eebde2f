"""What the experiments run with: the paper's settings on its data sets, smaller ones on the mini-world."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...fedproto.records import TrainSettings
from ..miniworld.videos import EXPERIMENT_TEST_SHARE
from .external_runs import GivenRuns
from .features import ExperimentData
from .jobs import Job, PartitionRule
from .numbers import HMDB51, MINIWORLD, UCF101
from .splits import SplitRule

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
# epoch instead of one. With 0.01 such short silos end in unlike places and their mean in neither.
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


@dataclass(frozen=True)
class Context:
    """Features, settings and what others measured: all that a plan may look at."""

    data: ExperimentData
    settings: Settings
    given: GivenRuns = field(default_factory=GivenRuns)

    @property
    def paper(self) -> str:
        """The data set whose numbers of the paper stand beside ours; the mini-world has none."""
        return self.settings.dataset if self.settings.dataset in (UCF101, HMDB51) else ""

    def iid(self, silos: int | None = None) -> PartitionRule:
        return PartitionRule("iid", silos or self.settings.silos)

    def dirichlet(self, beta: float | None = None, silos: int | None = None) -> PartitionRule:
        return PartitionRule("dirichlet", silos or self.settings.silos, beta or self.settings.beta)

    def job(self, extractor: str = "", **changes: object) -> Job:
        """The default run on ``extractor`` (the main one), with ``changes`` to Job's fields."""
        base = {
            "partition": self.iid(),
            "split": self.settings.split,
            "train": self.settings.train,
            "rounds": self.settings.rounds,
        }
        return Job(extractor or self.data.main, **{**base, **changes})  # type: ignore[arg-type]
