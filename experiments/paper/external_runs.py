"""Runs made by other commands on the videos themselves: the KD baseline and ActionCLIP, as result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ...base.errors import DataError
from ...base.files import printable_path

SET_ASIDE = "set aside from the training clips"  # as KD's result says where its centre's clips are from


class GivenClips(msgspec.Struct, frozen=True):
    """How many clips were where."""

    train: int = 0  # ActionCLIP
    centre: int = 0  # KD
    silos: tuple[int, ...] = ()  # KD
    test: int = 0


class GivenSplit(msgspec.Struct, frozen=True):
    test_groups_sha256: str = ""  # datasets.groups_digest of the test's; "" in results of before


class GivenDetails(msgspec.Struct, frozen=True):
    clips: GivenClips = GivenClips()
    centre: str = ""  # SET_ASIDE, or the folder of its own clips
    split: GivenSplit = GivenSplit()


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
    details: GivenDetails = GivenDetails()

    @property
    def how(self) -> str:
        """What it was trained on and tested with; of KD also the centre's share and how the silos' clips were dealt."""
        clips, federated = self.details.clips, self.settings.get("federated")
        said = [f"tested on {clips.test or 'the'} clips of held-out groups"]
        if clips.train:
            said.append(f"all {clips.train} training clips in one place")
        if clips.centre and self.details.centre in ("", SET_ASIDE):
            said.append(f"{clips.centre} of {clips.centre + sum(clips.silos)} training clips at its centre, which no "
                        "silo has")  # fmt: skip
        elif clips.centre:
            said.append(f"{clips.centre} clips of its centre's own")
        if isinstance(federated, dict) and "beta" in federated:
            beta = federated["beta"]
            sizes = f" of {min(clips.silos)} to {max(clips.silos)} clips" if clips.silos else ""
            said.append(f"silos{sizes} " + ("IID" if beta is None else f"by Dirichlet {beta}, not IID"))
        return ", ".join(said)


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
