"""Content of the demo's report page: figures of one run, without any layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RoundAccuracy:
    """Accuracy of the global model after a round."""

    round: int
    accuracy: float | None  # share of the test clips, 0 … 1; None when the round was abandoned


@dataclass(frozen=True)
class SiloReport:
    """Clips and local accuracy of one silo."""

    name: str
    clips: int  # that it has; it trains on most of them and holds the others out
    clips_per_class: Mapping[str, int] = field(default_factory=dict)  # missing labels count 0
    local_accuracy: float | None = None  # on the test clips, of a model trained on this silo alone, 0 … 1


@dataclass(frozen=True)
class ClipPrediction:
    """Prediction of the final model for one held-out clip."""

    video: str  # file name
    labels: tuple[tuple[str, float], ...]  # (label, probability 0 … 1), most probable first
    truth: str | None = None  # the clip's own label
    caption: str | None = None
    frames: tuple[bytes, ...] = ()  # PNG or JPEG files, in time order

    @property
    def correct(self) -> bool:
        """True when the most probable label is the clip's own."""
        return bool(self.labels) and self.labels[0][0] == self.truth


@dataclass(frozen=True)
class RunInputs:
    """Origin of the clips and networks; None: the project's own rendered clips, its own small networks."""

    videos: str | None = None  # folder of the user's clips
    bundle: str | None = None  # name of the user's bundle

    @property
    def summary(self) -> str:
        """The page's first paragraph: the material, and what the figures mean for it."""
        if self.videos is None and self.bundle is None:
            return (
                "The clips are rendered and the networks are small ones that this project trained on such clips. "
                "The figures show that the whole system works; they do not show how accurate the published models "
                "are on real video."
            )
        if self.videos is None:
            return (
                f"The clips are rendered; the networks are those of the bundle {self.bundle}. The figures show that "
                "the whole system works with this bundle; they say little about real video."
            )
        if self.bundle is None:
            return (
                f"The clips are those in {self.videos}. The networks are small ones that this project trained on "
                "rendered clips only: expect more from a bundle of published weights."
            )
        return f"The clips are those in {self.videos}; the networks are those of the bundle {self.bundle}."


@dataclass(frozen=True)
class DemoReport:
    """Content of the page. None and empty values were not measured and are not shown."""

    labels: tuple[str, ...]
    chance: float  # accuracy of guessing, 0 … 1
    rounds: tuple[RoundAccuracy, ...]  # in order
    silos: tuple[SiloReport, ...]
    test_clips: int
    test_groups: int | None = None  # scenes or people that no silo trained on
    inputs: RunInputs = RunInputs()
    centralised_accuracy: float | None = None  # one model on all silos' clips together
    metadata_accuracy: float | None = None  # a classifier that sees frame size, length and bytes only
    bytes_per_silo_round: int | None = None  # sent and received by one silo in one round
    head_parameters: int | None = None  # trained and sent
    extractor_parameters: int | None = None  # frozen, never sent
    ms_per_clip: float | None = None  # extraction, wall milliseconds
    stages_ms: Mapping[str, float] = field(default_factory=dict)  # the same by stage; stages of several clips overlap
    seconds: float | None = None  # the whole run
    created: str = ""  # UTC, RFC 3339
    correct: ClipPrediction | None = None  # a test clip that the last model got right
    doubtful: ClipPrediction | None = None  # one that it got wrong; without any, the least certain
    wrong_clips: int | None = None  # of the test clips
    command: str = ""  # repeats the run
    bundle: Mapping[str, str] = field(default_factory=dict)  # as shown: "fingerprint" -> "3f2a…"
    settings: Mapping[str, str] = field(default_factory=dict)  # as shown: "local epochs" -> "5"
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def last(self) -> float | None:
        """Accuracy after the last closed round, the headline."""
        return next((r.accuracy for r in reversed(self.rounds) if r.accuracy is not None), None)

    @property
    def best(self) -> RoundAccuracy | None:
        """The round with the highest accuracy; the first if several are equal."""
        closed = [r for r in self.rounds if r.accuracy is not None]
        return max(closed, key=lambda r: r.accuracy or 0.0, default=None)

    @property
    def local_accuracy(self) -> float | None:
        """Mean of the silos' local-only accuracies."""
        known = [silo.local_accuracy for silo in self.silos if silo.local_accuracy is not None]
        return sum(known) / len(known) if known else None
