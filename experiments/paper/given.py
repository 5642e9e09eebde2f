"""Runs made by other commands on the videos themselves: the KD baseline and ActionCLIP, as result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ...base.errors import DataError
from ...base.files import printable_path


class GivenRun(msgspec.Struct, frozen=True):
    """What DIR/kd.json or DIR/actionclip.json says; accuracies 0 to 1, further keys are left alone."""

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

    @property
    def how(self) -> str:
        """What differs from the table's own rows: the test clips are whole groups; KD's silos."""
        federated = self.settings.get("federated")
        dealt = ""
        if isinstance(federated, dict) and "beta" in federated:
            beta = federated["beta"]
            dealt = ", silos IID" if beta is None else f", silos by Dirichlet {beta}, not IID"
        return f"tested on held-out groups{dealt}"


class GivenRuns(msgspec.Struct, frozen=True):
    kd: GivenRun | None = None
    actionclip: GivenRun | None = None


def read_given(folder: Path | None, dataset: str) -> GivenRuns:
    """The result files of ``folder`` that are of ``dataset``. Raises DataError on one that cannot be read."""
    if folder is None:
        return GivenRuns()
    return GivenRuns(_read(folder / "kd.json", dataset), _read(folder / "actionclip.json", dataset))


def _read(path: Path, dataset: str) -> GivenRun | None:
    try:
        run = msgspec.json.decode(path.read_bytes(), type=GivenRun)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(
            f"{printable_path(path)} is not a result of flamest-experiment kd or actionclip: {error}",
            fix="make it again, or take the file away",
        ) from error
    if dataset and run.dataset != dataset:
        raise DataError(
            f"{printable_path(path)} was measured on {run.dataset}, this is {dataset}",
            fix="give the --results folder of the same data set; where it is the same, run kd or actionclip with "
            f"--dataset {dataset} (it goes on from its checkpoints)",
        )
    return run
