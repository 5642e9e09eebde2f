"""What silo and coordinator tell each other, as records; messages.py turns them into protobuf."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Literal

import msgspec

from ..base.errors import DataError
from .head import HeadSpec, Params

PROTOCOL = 1  # a coordinator serves its own protocol and the one before


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strict and immutable."""


class TrainSettings(_Record, frozen=True):
    """Local training (paper section 4): Adam, its moments starting anew each round."""

    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 0.01
    weight_decay: float = 1e-4  # Adam's L2 term: added to the gradient


class Strategy(_Record, frozen=True):
    """How silos train and how their models become one.

    fedavg: eq. 12. fedprox: the same average; silos add (mu/2)·‖w − w_t‖² (Li et al. 2020).
    """

    name: Literal["fedavg", "fedprox"] = "fedavg"
    mu: float = 0.0  # fedprox only


class RunSettings(_Record, frozen=True):
    """All that the silos must agree on; made by the coordinator, the only text on the wire."""

    run: str
    labels: tuple[str, ...]  # class k is labels[k]
    head: HeadSpec
    rounds: int
    min_silos: int  # fewer reports than this at the deadline: the round is abandoned
    deadline_s: float  # a round's length at most, seconds
    fingerprint: str  # of the bundle whose features are trained on
    seed: int = 0
    strategy: Strategy = Strategy()
    train: TrainSettings = TrainSettings()

    def encode(self) -> bytes:
        return msgspec.json.encode(self, order="deterministic")

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()


def decode_run_settings(data: bytes) -> RunSettings:
    """Strict: DataError on an unknown key, a wrong type or labels that do not fit the head."""
    try:
        settings = msgspec.json.decode(data, type=RunSettings)
    except msgspec.DecodeError as error:
        raise DataError(f"the coordinator's run settings cannot be read: {error}") from error
    if len(settings.labels) != settings.head.outputs:
        raise DataError(f"the run has {len(settings.labels)} labels, its head {settings.head.outputs} outputs")
    return settings


class Phase(enum.Enum):
    """Where a run stands, as a silo sees it."""

    WAIT = "wait"  # nothing to do now: ask again after poll_after_s
    OPEN = "open"  # round is open and this silo has not answered it
    FINISHED = "finished"


@dataclass(frozen=True)
class Standing:
    """Answer to "is there work for me?"."""

    phase: Phase
    round: int  # the round that is open, or the last one that closed
    model_sha256: str  # of the model that the open round starts from; with FINISHED, of the final one
    deadline_s: float  # seconds until the open round closes
    poll_after_s: float  # seconds to wait before the next question, jitter included


@dataclass(frozen=True, eq=False)
class GlobalModel:
    """The model that a round starts from."""

    round: int
    params: Params
    sha256: str  # params_sha256(params)


@dataclass(frozen=True)
class Evaluation:
    """How the incoming global model does on a silo's held-out clips, before local training."""

    loss: float  # mean cross-entropy, nats
    correct: int
    count: int


@dataclass(frozen=True, eq=False)
class Update:
    """What a silo sends back: its trained parameters and how many examples stand behind them."""

    round: int
    base_sha256: str  # GlobalModel.sha256 that training started from
    update_id: str  # 32 hexadecimal digits, chosen by the silo, kept over retries
    examples: int
    params: Params
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Receipt:
    """The coordinator holds the update durably; the same bytes again get the same receipt."""

    round: int
    update_id: str
    sha256: str  # of the payload as received
