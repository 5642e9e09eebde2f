"""The note that a silo leaves in a model file: the choice of held-out clips, and the settings of the training.

``flamest-agent evaluate`` needs it to find the same held-out clips again, and to train a model alone in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from ...base.errors import DataError, StorageError
from ...fedproto.head import HeadSpec, Params
from ...fedproto.model_file import ModelFile, read_model
from ...fedproto.records import TrainSettings

KEY = "training"  # in a model file's metadata
ROWS = "rows"  # in that of an own head: ``adoption.rows_sha256`` of what it was trained on


class TrainingNote(msgspec.Struct, frozen=True):
    """The settings of a training on one silo's store."""

    seed: int  # of initialisation, shuffles and the choice of held-out groups
    hold_out: float  # share of groups
    rounds: int
    train: TrainSettings
    independent: bool = False  # record-dp: each group is held out or not by its name alone

    @property
    def split(self) -> tuple[int, float, bool]:
        """Seed, share and kind of the choice of held-out clips."""
        return self.seed, self.hold_out, self.independent

    def as_metadata(self) -> Mapping[str, str]:
        """Return it for ``ModelFile.metadata``."""
        return {KEY: msgspec.json.encode(self).decode()}


def training_note(model: ModelFile) -> TrainingNote | None:
    """Return a model's note; None where there is none, or one that this version cannot read."""
    try:
        return msgspec.json.decode(model.metadata[KEY], type=TrainingNote)
    except (KeyError, msgspec.DecodeError, UnicodeError):
        return None


def own_head_of(
    path: Path, head: HeadSpec, labels: tuple[str, ...], fingerprint: str, note: TrainingNote, rows: str
) -> Params | None:
    """Return the parameters of an own head that is there, if it was trained as ``note`` says, on these rows."""
    try:
        own = read_model(path)
    except (DataError, StorageError):  # there is none, or it is lost
        return None
    same = (own.head, own.labels, own.fingerprint) == (head, labels, fingerprint)
    return own.params if same and training_note(own) == note and own.metadata.get(ROWS) == rows else None
