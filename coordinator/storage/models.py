"""The models of a run: one file for each closed round, ``round-000012.safetensors``; 0 is the initial model."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import DataError, StorageError
from ...fedproto.calibration import Calibration
from ...fedproto.head import Params, params_sha256
from ...fedproto.model_file import ModelFile, read_model, write_model
from ...fedproto.records import RunSettings
from .damaged_files import damaged_file_error


def models_folder(state: Path, run: str) -> Path:
    """Return the folder of a run's models in a state folder."""
    return state / "runs" / run / "models"


def model_path(folder: Path, round_number: int) -> Path:
    """Return the file of the model that ``round_number`` made."""
    return folder / f"round-{round_number:06d}.safetensors"


@dataclass(frozen=True)
class ModelStore:
    """Reader and writer of one run's models."""

    folder: Path
    run: RunSettings
    keep: int  # how many of the last models stay; 0: all

    def path(self, round_number: int) -> Path:
        """Return the file of the round's model."""
        return model_path(self.folder, round_number)

    def write(self, round_number: int, params: Params, calibration: Calibration | None = None) -> None:
        """Write a model; it is durable when this returns. Raises StorageError."""
        run = self.run
        names = (run.labels, run.fingerprint, run.run, round_number)
        model = ModelFile(run.head, params, *names, calibration=calibration)
        write_model(model_path(self.folder, round_number), model)

    def read(self, round_number: int, sha256: str) -> Params:
        """Return a model. Raises DataError (``corrupt_model``) unless its ``params_sha256`` is ``sha256``."""
        path = model_path(self.folder, round_number)
        try:
            model = read_model(path)
        except (DataError, StorageError) as error:
            raise damaged_file_error(path, error.message, code="corrupt_model") from error
        if model.head != self.run.head or params_sha256(model.params) != sha256:
            raise damaged_file_error(
                path, f"not the model {sha256[:12]}… of round {round_number}", code="corrupt_model"
            )
        return model.params

    def remove_old(self, best: int | None = None) -> None:
        """Remove all but the last ``keep`` models and that of round ``best``, and what an interrupted write left."""
        old = sorted(self.folder.glob("round-*.safetensors"))[: -self.keep] if self.keep else []
        kept = None if best is None else self.path(best)
        for path in (*old, *self.folder.glob(".*.tmp")):
            if path != kept:
                with contextlib.suppress(OSError):
                    path.unlink()
