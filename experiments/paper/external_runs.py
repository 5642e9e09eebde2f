"""Results of KD and ActionCLIP, which other commands train on the videos themselves, read from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ...base.errors import DataError
from ...base.files import printable_path
from ..baselines.result import SET_ASIDE


class ExternalClips(msgspec.Struct, frozen=True):
    """Number of clips in each place."""

    train: int = 0  # ActionCLIP
    centre: int = 0  # KD
    silos: tuple[int, ...] = ()  # KD
    test: int = 0


class ExternalSplit(msgspec.Struct, frozen=True):
    """The held-out groups of a run."""

    test_groups_sha256: str = ""  # datasets.groups_digest of the test groups; "" when the file has none


class ExternalDetails(msgspec.Struct, frozen=True):
    """The part of a result's details that a table shows."""

    clips: ExternalClips = ExternalClips()
    centre: str = ""  # SET_ASIDE, or the folder of its own clips
    split: ExternalSplit = ExternalSplit()


class ExternalRun(msgspec.Struct, frozen=True):
    """Content of DIR/kd.json or DIR/actionclip.json; accuracies 0 to 1, further keys are ignored."""

    name: str
    dataset: str
    best: float
    last: float
    seconds_train: float
    seconds_test: float
    trainable_parameters: int
    curve: tuple[float, ...] = ()  # test accuracy
    train_curve: tuple[float, ...] = ()
    scale: str = ""
    settings: dict[str, Any] = {}
    details: ExternalDetails = ExternalDetails()

    @property
    def description(self) -> str:
        """The clips of training and test; for KD also the centre's share and the split over the silos."""
        clips, federated = self.details.clips, self.settings.get("federated")
        parts = [f"tested on {clips.test or 'the'} clips of held-out groups"]
        if clips.train:
            parts.append(f"all {clips.train} training clips in one place")
        if clips.centre and self.details.centre in ("", SET_ASIDE):
            parts.append(f"{clips.centre} of {clips.centre + sum(clips.silos)} training clips at its centre, which no "
                         "silo has")  # fmt: skip
        elif clips.centre:
            parts.append(f"{clips.centre} clips of its centre's own")
        if isinstance(federated, dict) and "beta" in federated:
            beta = federated["beta"]
            sizes = f" of {min(clips.silos)} to {max(clips.silos)} clips" if clips.silos else ""
            parts.append(f"silos{sizes} " + ("IID" if beta is None else f"by Dirichlet {beta}, not IID"))
        return ", ".join(parts)


class ExternalRuns(msgspec.Struct, frozen=True):
    """The results that were given with ``--results``."""

    kd: ExternalRun | None = None
    actionclip: ExternalRun | None = None

    @property
    def present(self) -> list[ExternalRun]:
        """Those that are there, in order."""
        return [run for run in (self.kd, self.actionclip) if run is not None]


def read_external_runs(folder: Path | None, dataset: str) -> ExternalRuns:
    """The result files of ``folder`` for ``dataset``. Raises DataError on one that cannot be read."""
    if folder is None:
        return ExternalRuns()
    return ExternalRuns(_read(folder / "kd.json", dataset), _read(folder / "actionclip.json", dataset))


def _read(path: Path, dataset: str) -> ExternalRun | None:
    try:
        run = msgspec.json.decode(path.read_bytes(), type=ExternalRun)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(
            f"{printable_path(path)} is not a result of flamest-experiment kd or actionclip: {error}",
            fix="run that command again, or remove the file",
        ) from error
    if dataset and run.dataset != dataset:
        raise DataError(
            f"{printable_path(path)} was measured on {run.dataset}, expected {dataset}",
            fix="give the --results folder of the same data set; if it is the same, run kd or actionclip with "
            f"--dataset {dataset} (it resumes from its checkpoints)",
        )
    return run
