"""Settings of KD, including values that Jain et al. leave open or give in a text that we do not have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...base.errors import UsageError
from .clips import ClipShape
from .networks import Dimensions, Scale
from .result import Device
from .training import Fit


@dataclass(frozen=True)
class CentralSettings:
    """Distillation at the centre, on its own clips, before the federation."""

    teacher: Fit
    assistant: Fit
    student: Fit
    temperature: float = 4.0
    alpha: float = 0.7  # weight of the soft loss
    share: float = 0.5  # of the training clips, by groups, set aside for the centre when it has no clips of its own


@dataclass(frozen=True)
class FederatedSettings:
    """Asynchronous fine-tuning of the student on the silos' clips."""

    silos: int = 4
    beta: float | None = 0.6  # of the Dirichlet split; None: IID
    rounds: int = 20  # of as many reports as there are silos
    epochs: int = 2  # that a silo trains before it reports
    batch_size: int = 16
    learning_rate: float = 0.01  # of SGD with momentum 0.9, reset for each report
    weight_decay: float = 1e-4
    mixing: float = 0.6  # share of an up-to-date report in the centre's new model
    staleness_power: float = 0.5  # a report s versions old has the share mixing · (1 + s) ** -power
    proximal: float = 0.005  # mu of (mu / 2) ‖w - w_t‖² in a silo's loss
    slowest: float = 3.0  # times the time of the fastest device


@dataclass(frozen=True)
class KdSettings:
    """All settings of a run of KD."""

    central: CentralSettings
    shape: ClipShape
    federated: FederatedSettings = field(default_factory=FederatedSettings)
    dimensions: Dimensions = "2d"  # of assistant and student
    test_share: float = 0.2


def kd_settings(scale: Scale, *, epochs: int | None = None) -> KdSettings:
    """The defaults of a scale; ``epochs`` of each of the three central trainings. Raises UsageError below 1."""
    if epochs is not None and epochs < 1:
        raise UsageError(f"--epochs {epochs}: expected 1 or more", fix="--epochs 10")
    if scale == "full":
        fit = Fit(epochs or 50, batch_size=32, learning_rate=0.05, weight_decay=1e-4, optimiser="sgd")
        federated = FederatedSettings(rounds=80, epochs=1, batch_size=32, learning_rate=0.005)
        return KdSettings(CentralSettings(fit, fit, fit), ClipShape(frames=8, size=112, spare=1), federated)
    fit = Fit(epochs or 15, batch_size=16, learning_rate=3e-3, weight_decay=0.02)
    return KdSettings(CentralSettings(fit, fit, fit), ClipShape(frames=8, size=64))


@dataclass(frozen=True)
class KdRequest:
    """Clips and settings of a run.

    ``videos``: the silos' labelled clips, of which some groups are held out for the test.
    ``central``: a folder of the centre's own labelled clips, of the same or other classes (Kinetics, in
    Jain et al.); None sets a share of the training clips aside for the centre, which no silo then has.
    """

    videos: Path
    out: Path
    scale: Scale = "small"
    settings: KdSettings = field(default_factory=lambda: kd_settings("small"))
    central: Path | None = None
    dataset: str = ""  # name in the result; the folder's name by default
    seed: int = 0
    threads: int = 2
    device: Device = "auto"

    def inputs(self) -> dict[str, Any]:
        """Inputs that the result depends on, apart from clips and settings."""
        return {"scale": self.scale, "seed": self.seed, "device": self.device, "threads": self.threads}
