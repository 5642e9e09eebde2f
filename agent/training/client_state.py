"""The state that a silo carries from round to round, on disk: FedDyn's h_i, and a lossy codec's residual.

    STATE/feddyn/RUN/round-000012.arrays     both after round 12, and the parameters that were trained

Only the files of the last ``RUNS_KEPT`` runs are kept.

A file is durable before its update is sent. When the coordinator opens the next round, it says whether the update
counted (``TaskStatus.counted_round``): training resumes from that round's file, and the others are removed. So an
update that was refused, came late, or belonged to a round that was abandoned is rolled back, and a crash at any moment
leaves either the file or nothing.

The parameters are kept too: a round that is trained again after a crash sends what it sent before, even if the clips
have changed meanwhile. Otherwise the coordinator might count one update, and h_i follow from another.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import DataError, StorageError
from ...base.files import fsync_directory
from ...base.log import Log
from ...fedproto.codecs import FlatParams, flatten_params
from ...fedproto.head import HeadSpec, Params, check_params, split_params
from ...fedproto.records import GlobalModel, RunSettings
from ...fedproto.tensor_file import TensorFile, read_tensors, write_tensors
from .feddyn import Correction

CLIENT_STATE_FOLDER = "feddyn"
RUNS_KEPT = 2  # the run that is served, and the one before: a coordinator may make up runs without end

log = Log("agent")


@dataclass(frozen=True, eq=False)
class TrainedRound:
    """The result of a round of local training."""

    params: Params
    examples: int
    loss: float  # last epoch's, nats
    correction: Correction  # h_i if the update counts
    residual: FlatParams | None = None  # the rounding error of a lossy codec, if the update counts


@dataclass(frozen=True)
class ClientState:
    """One run's files."""

    folder: Path
    head: HeadSpec

    @classmethod
    def of_run(cls, state: Path, run: RunSettings) -> ClientState:
        """Open the files in the agent's state folder; a run is identified by its settings."""
        return cls(state / CLIENT_STATE_FOLDER / run.sha256[:16], run.head)

    def correction(self, round_number: int, counted_round: int) -> Correction:
        """Return h_i to train round ``round_number`` with; ``counted_round`` is the last one that counted, 0 for none.

        The content of a lost or damaged file cannot be restored: h_i then starts at zero again, as for a new silo, and
        the log has a warning.
        """
        for path in self.folder.glob("*"):
            if path not in (self._path(counted_round), self._path(round_number)):
                with contextlib.suppress(OSError):
                    path.unlink()
        if counted_round == 0:
            return {}
        try:
            return self._read(counted_round, None).correction
        except (DataError, StorageError) as error:
            log.warning("correction_lost", round=counted_round, detail=error.message)
            return {}

    def residual(self, counted_round: int) -> FlatParams | None:
        """Return the codec's residual of the last update that counted; None: none, or lost (logged)."""
        if counted_round == 0:
            return None
        try:
            return self._read(counted_round, None).residual
        except (DataError, StorageError) as error:
            log.warning("residual_lost", round=counted_round, detail=error.message)
            return None

    def trained(self, model: GlobalModel, policy_sha256: str = "") -> TrainedRound | None:
        """Return what this silo trained from this model before, in a round that was interrupted; None: nothing.

        A result of another policy is not returned.
        """
        if not self._path(model.round).exists():
            return None
        try:
            return self._read(model.round, (model.sha256, policy_sha256))
        except (DataError, StorageError) as error:
            log.warning("correction_lost", round=model.round, detail=error.message)
            return None

    def save(self, model: GlobalModel, trained: TrainedRound, policy_sha256: str = "") -> None:
        """Write a round's result before its update is sent; durable when it returns. Raises StorageError."""
        try:
            for folder in (self.folder.parent, self.folder):
                if not folder.exists():
                    folder.mkdir(mode=0o700, parents=True)
                    fsync_directory(folder.parent)
            self._remove_older_runs()
        except OSError as error:
            raise StorageError(
                f"cannot make {self.folder}: {error.strerror}",
                fix="check free space and permissions of the state folder",
            ) from error
        header: dict[str, str | int] = {
            "base_sha256": model.sha256,
            "policy_sha256": policy_sha256,
            "examples": trained.examples,
            "loss": float(trained.loss).hex(),
        }
        arrays: dict[str, Any] = {f"h/{name}": array for name, array in trained.correction.items()}
        arrays |= {f"w/{name}": array for name, array in trained.params.items()}
        if trained.residual is not None:
            arrays |= {f"e/{name}": array for name, array in split_params(self.head, trained.residual).items()}
        write_tensors(self._path(model.round), TensorFile(header, arrays))

    def _remove_older_runs(self) -> None:
        others = [path for path in self.folder.parent.iterdir() if path != self.folder]
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[RUNS_KEPT - 1 :]:
            shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Remove all files of the run, when it has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, round_number: int, wanted: tuple[str, str] | None) -> TrainedRound:
        """Read a round's file. ``wanted``: the model that it must have been trained from, and the policy."""
        path = self._path(round_number)
        content = read_tensors(path)
        parts: dict[str, dict[str, np.ndarray]] = {"h": {}, "w": {}, "e": {}}
        for name, array in content.tensors.items():
            parts[name[0]][name[2:]] = array
        if wanted not in (None, (content.metadata["base_sha256"], content.metadata.get("policy_sha256", ""))):
            raise DataError(
                f"{path} was trained from another model, or under another policy",
                fix="nothing to do: the silo starts without it",
                code="damaged",
            )
        params = {name: array.astype(np.float32) for name, array in parts["w"].items()}
        check_params(self.head, params, whose=str(path))
        correction = {name: array.astype(np.float64, copy=False) for name, array in parts["h"].items()}
        loss = float.fromhex(str(content.metadata["loss"]))
        residual = flatten_params(parts["e"]) if parts["e"] else None
        return TrainedRound(params, int(content.metadata["examples"]), loss, correction, residual)

    def _path(self, round_number: int) -> Path:
        return self.folder / f"round-{round_number:06d}.arrays"
