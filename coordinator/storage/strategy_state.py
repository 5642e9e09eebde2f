"""The strategy's state on disk: FedDyn's h, FedAvgM's and FedAdam's moments, the sum for ``average_last``.

``STATE/runs/NAME/memory/round-000012.arrays``, one file for each of the last two closed rounds (the older one in case
the newer model is damaged), durable before the row that closes the round is committed. A run whose strategy keeps no
state has no file.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...base.errors import DataError, StorageError
from ...base.files import fsync_directory, storage_code
from ...fedproto.records import RunSettings
from ...fedproto.tensor_file import TensorFile, read_tensors, write_tensors
from ..strategies.algorithm import ServerState
from ..strategies.composition import state_arrays
from ..strategies.contributions import Sums
from .damaged_files import damaged_file_error

SERVER_ARRAYS = ("residual", "tail")  # of every strategy; an algorithm's own come before them


@dataclass(frozen=True)
class StrategyState:
    """Reader and writer of one run's strategy state."""

    folder: Path
    run: RunSettings

    def write(self, round_number: int, model_sha256: str, state: ServerState) -> None:
        """Write the state after a round, if there is any; it is durable when this returns. Raises StorageError."""
        sums = {**state.arrays, "residual": state.residual, "tail": state.tail}
        arrays = {f"{kind}/{name}": array for kind, tensors in sums.items() for name, array in tensors.items()}
        if not arrays:
            return
        counts: dict[str, str | int] = {"left": state.rounds_left, "tail_count": state.tail_count}
        try:
            if not self.folder.exists():
                self.folder.mkdir(mode=0o700)
                fsync_directory(self.folder.parent)
        except OSError as error:
            raise StorageError(
                f"cannot make {self.folder}: {error.strerror}",
                fix="check free space and permissions of server.state",
                code=storage_code(error),
            ) from error
        write_tensors(self.path(round_number), TensorFile({"model_sha256": model_sha256, **counts}, arrays))

    def read(self, closed: int, round_number: int, model_sha256: str) -> ServerState:
        """Return the state after ``closed`` rounds, the last of them ``round_number``, which made that model.

        Raises DataError (``corrupt_memory``) unless it is what was written.
        """
        rounds_left = self.run.rounds - closed
        if not self._has_state(closed):
            return ServerState(rounds_left=rounds_left)
        path = self.path(round_number)
        try:
            content = read_tensors(path)
        except (DataError, StorageError) as error:
            raise damaged_file_error(path, error.message, code="corrupt_memory") from error
        if (content.metadata.get("model_sha256"), content.metadata.get("left")) != (model_sha256, rounds_left):
            raise damaged_file_error(path, f"not of the model {model_sha256[:12]}…", code="corrupt_memory")
        own = state_arrays(self.run.strategy)
        kinds = (*own, *SERVER_ARRAYS)
        shapes = {f"{kind}/{name}": shape for kind in kinds for name, shape in self.run.head.shapes.items()}
        if any(shapes.get(name) != array.shape for name, array in content.tensors.items()):
            raise damaged_file_error(path, "its arrays are not the head's", code="corrupt_memory")
        arrays = {kind: part for kind in own if (part := self._part(content, kind))}
        residual, tail = (self._part(content, kind) for kind in SERVER_ARRAYS)
        return ServerState(rounds_left, arrays, residual, tail, tail_count=int(content.metadata.get("tail_count", 0)))

    def remove_old(self, *kept: int) -> None:
        """Remove all but the files of these rounds, and what an interrupted write left."""
        paths = {self.path(number) for number in kept}
        for path in self.folder.glob("*"):
            if path not in paths:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _has_state(self, closed: int) -> bool:
        strategy = self.run.strategy
        tail = self.run.rounds - closed < strategy.average_last
        return closed > 0 and (bool(state_arrays(strategy)) or tail or self.run.codec != "fp32")

    def _part(self, content: TensorFile, kind: str) -> Sums:
        return {
            name: content.tensors[f"{kind}/{name}"].astype(np.float64, copy=False)
            for name in self.run.head.shapes
            if f"{kind}/{name}" in content.tensors
        }

    def path(self, round_number: int) -> Path:
        """Return the round's file."""
        return self.folder / f"round-{round_number:06d}.arrays"
