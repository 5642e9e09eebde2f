"""Records that silo and coordinator exchange; messages/ encodes them as protobuf."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Literal

import msgspec

from ..base.errors import DataError, printable
from .bounds import (
    MAX_ACTIVATIONS,
    MAX_BATCH,
    MAX_DEADLINE_S,
    MAX_EPOCHS,
    MAX_FACTOR,
    MAX_FINGERPRINT,
    MAX_RATE,
    MAX_ROUND_NUMBER,
    MAX_ROUNDS,
    MAX_RUN_NAME,
    MAX_SEED,
    MAX_SETTINGS_BYTES,
    MAX_SILOS,
    MAX_SUBJECTS,
    MAX_TERM,
    label_problems,
    name_problems,
    number_problems,
    positive_problems,
    shortened,
)
from .calibration import TEMPERATURES, Calibration
from .codecs import Codec
from .head import HeadSpec, Params, without_defaults

PROTOCOL = 1  # a coordinator serves its own protocol and the one before
OWN_HEAD = MAX_SUBJECTS  # subject of a final evaluation; those that a silo is asked to fetch are below
ADAM_BETAS = (0.9, 0.999)  # of local training (torch.optim.Adam's defaults); the norm bound follows from them


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strict and immutable."""


class TrainSettings(_Record, frozen=True):
    """Local training (paper section 4) with Adam, whose moments start at zero in each round."""

    epochs: int = 5  # passes over a silo's clips in each round
    batch_size: int = 128  # clips of one step; the last, smaller batch of an epoch is kept
    learning_rate: float = 0.01  # of Adam
    weight_decay: float = 1e-4  # Adam's L2 term: added to the gradient
    learning_rate_decay: float = 1.0  # round r (from 1) trains at learning_rate * decay ** (r - 1)
    class_balanced: bool = False  # a silo weights its classes equally: N / (K * n_c) over its K classes

    def problems(self) -> list[str]:
        """Return what is out of range, each problem beginning with the field's name."""
        return [
            *number_problems("epochs", self.epochs, 1, MAX_EPOCHS),
            *number_problems("batch_size", self.batch_size, 1, MAX_BATCH),
            *positive_problems("learning_rate", self.learning_rate, MAX_RATE),
            *number_problems("weight_decay", self.weight_decay, 0, MAX_RATE),
            *positive_problems("learning_rate_decay", self.learning_rate_decay, 1),
        ]


class Strategy(_Record, frozen=True):
    """The algorithm: how silos train, and how their models are aggregated.

    fedavg: eq. 12. fedprox: the same average; silos add (mu/2)·‖w − w_t‖² (Li et al. 2020,
    arXiv 1812.06127). feddyn: silos add −<h_i, w> + (alpha/2)·‖w − w_t‖², the coordinator corrects the
    plain mean by its own h (Acar et al. 2021, arXiv 2111.04263). Except with feddyn, updates may be combined otherwise
    than by the weighted mean (Yin et al. 2018, arXiv 1803.01498), clipped before that (Sun et al. 2019, arXiv
    1911.07963), and the model moved by a server optimiser after it (Hsu et al. 2019, Reddi et al. 2021).
    """

    name: Literal["fedavg", "fedprox", "feddyn"] = "fedavg"  # rule of training and aggregation
    mu: float = 0.0  # fedprox only: weight of the term that keeps silos near the round's model; more than 0
    alpha: float = 0.0  # feddyn only: weight of its regulariser; more than 0
    server_momentum: float = 0.0  # FedAvgM on top of the average (Hsu et al. 2019, arXiv 1909.06335); not feddyn
    average_last: int = 0  # above 0: the final model is the plain mean of the models of this many last rounds
    combine: Literal["mean", "median", "trimmed_mean"] = "mean"  # of the updates; median and trimmed mean: unweighted
    trim: float = 0.0  # trimmed_mean only: share of the silos left out at either end of every coordinate
    clip: float = 0.0  # above 0: updates are clipped to this multiple of the median distance from the round's model
    server_adam: float = 0.0  # above 0: FedAdam's learning rate (Reddi et al. 2021, arXiv 2003.00295)
    server_beta1: float = 0.9  # FedAdam only: decay of the first moment
    server_beta2: float = 0.99  # FedAdam only: decay of the second moment
    server_tau: float = 1e-3  # FedAdam only: added to the square root; how adaptive the steps are

    def term_problems(self, owner: str, field: str) -> list[str]:
        """Check the weight of a term in the silos' loss: more than 0 in a run of ``owner``, 0 in every other run."""
        value = getattr(self, field)
        if self.name == owner and not 0 < value <= MAX_TERM:
            return [f"{field}: {owner} needs more than 0, at most {MAX_TERM:,.0f}"]
        if self.name != owner and value != 0:
            return [f"{field}: {self.name} has none; expected 0, or name = '{owner}'"]
        return []

    def problems(self) -> list[str]:
        """Return what silos cannot train with, each problem beginning with the field's name.

        The coordinator checks its own part of a strategy in coordinator/strategies/.
        """
        wrong = [problem for owner, field in CLIENT_TERMS for problem in self.term_problems(owner, field)]
        for field in _STRATEGY_NUMBERS:
            wrong += number_problems(field, getattr(self, field), 0, MAX_FACTOR)
        return wrong


CLIENT_TERMS = (("fedprox", "mu"), ("feddyn", "alpha"))  # strategy and the weight of its term in the silos' loss
_STRATEGY_NUMBERS = (
    "server_momentum",
    "average_last",
    "trim",
    "clip",
    "server_adam",
    "server_beta1",
    "server_beta2",
    "server_tau",
)

# Fields that are left out of the canonical JSON at their default.
_TRAIN_DEFAULTS = {"learning_rate_decay": 1.0, "class_balanced": False}
_RUN_DEFAULTS = {"codec": "fp32", "final_evaluation": "none", "gains": False, "calibrate": False}
_STRATEGY_DEFAULTS = {
    "alpha": 0.0,
    "server_momentum": 0.0,
    "average_last": 0,
    "combine": "mean",
    "trim": 0.0,
    "clip": 0.0,
    "server_adam": 0.0,
    "server_beta1": 0.9,
    "server_beta2": 0.99,
    "server_tau": 1e-3,
}


class RunSettings(_Record, frozen=True):
    """Everything that the silos must agree on. The coordinator makes it; it is the only text on the wire."""

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
    codec: Codec = "fp32"  # the coarsest that a silo may send, and the one that models are sent in
    # After the last round silos evaluate nothing, the final model, or also the last updates of silos that agreed.
    final_evaluation: Literal["none", "model", "sites"] = "none"
    gains: bool = False  # with it silos that agree also report how a head trained on their own clips alone does
    calibrate: bool = False  # after the last round silos report the counts that calibrate the final model

    def encode(self) -> bytes:
        """Return the canonical JSON: fields in their order, some only where they differ from their default."""
        fields = msgspec.to_builtins(self)
        fields["head"] = self.head.as_dict()
        fields["strategy"] = without_defaults(fields["strategy"], _STRATEGY_DEFAULTS)
        fields["train"] = without_defaults(fields["train"], _TRAIN_DEFAULTS)
        return msgspec.json.encode(without_defaults(fields, _RUN_DEFAULTS))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()

    def problems(self) -> list[str]:
        """Return what no silo accepts, each problem beginning with the field's name; the head has checked itself."""
        wrong = [
            *name_problems("run", self.run, MAX_RUN_NAME),
            *label_problems(self.labels),
            *name_problems("fingerprint", self.fingerprint, MAX_FINGERPRINT),
            *number_problems("rounds", self.rounds, 1, MAX_ROUNDS),
            *number_problems("min_silos", self.min_silos, 1, MAX_SILOS),
            *positive_problems("deadline_s", self.deadline_s, MAX_DEADLINE_S),
            *number_problems("seed", self.seed, 0, MAX_SEED),
            *(f"strategy.{problem}" for problem in self.strategy.problems()),
            *(f"train.{problem}" for problem in self.train.problems()),
        ]
        if self.gains and self.final_evaluation == "none":
            wrong.append("gains: are of the final model; expected final_evaluation = 'model' or 'sites'")
        if len(self.labels) != self.head.outputs:
            wrong.append(f"labels: {len(self.labels)}, the head has {self.head.outputs} outputs")
        if self.train.batch_size * sum(self.head.widths) > MAX_ACTIVATIONS:
            wrong.append(f"train.batch_size: times the widths of all layers, expected at most {MAX_ACTIVATIONS:,}")
        return wrong


def unprintable(*names: str) -> list[str]:
    """Return the names that hold a character that cannot be printed, escaped."""
    return [ascii(name) for name in names if not name.isprintable()]


def decode_run_settings(data: bytes) -> RunSettings:
    """Decode settings strictly: only their canonical bytes are accepted, only what is within ``bounds``.

    Raises DataError: ``bad_head`` and ``model_too_large`` as ``HeadSpec``; ``bad_settings`` for all else, such as an
    unknown key, a key that is there twice, names that cannot be printed (they would reach the silo's terminal and
    logs), and options that silos cannot train with.
    """
    if len(data) > MAX_SETTINGS_BYTES:
        raise _bad_settings_error(f"they have {len(data):,} bytes, expected at most {MAX_SETTINGS_BYTES:,}")
    try:
        settings = msgspec.json.decode(data, type=RunSettings)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _bad_settings_error(f"they cannot be read: {shortened(printable(str(error)))}") from error
    if wrong := settings.problems():
        raise _bad_settings_error(shortened("; ".join(wrong)))
    if settings.encode() != data:
        raise _bad_settings_error("they are not in canonical form, each key once and in its order")
    return settings


def _bad_settings_error(why: str) -> DataError:
    return DataError(
        f"the coordinator's run settings cannot be used: {why}",
        fix="ask the coordinator's operator to check them: flamest-coordinator run --check-config",
        code="bad_settings",
    )


class Phase(enum.Enum):
    """State of a run, as one silo sees it."""

    WAIT = "wait"  # nothing to do now: ask again after poll_after_s
    OPEN = "open"  # round is open and this silo has not answered it
    FINISHED = "finished"  # all rounds have closed
    EVALUATE = "evaluate"  # finished, and ``subjects`` models are to be evaluated on this silo's held-out clips
    CALIBRATE = "calibrate"  # finished, and counts that calibrate the final model are asked for


@dataclass(frozen=True)
class TaskStatus:
    """Task of a silo now: the answer to WaitForRound."""

    phase: Phase
    round: int  # the round that is open, or the last one that closed
    model_sha256: str  # of the model that the open round starts from; with FINISHED, of the final one
    deadline_s: float  # seconds until the open round closes
    poll_after_s: float  # seconds to wait before the next question, jitter included
    # With OPEN, for feddyn and lossy codecs: the last closed round in which this silo's update counts; 0: none.
    counted_round: int = 0
    subjects: int = 0  # EVALUATE: models to evaluate; subject 0 is the final one, 1 and up are single silos'
    temperature: float = 0.0  # CALIBRATE: 0: sums of confidence; otherwise counts of scores at this temperature

    def problems(self, run: RunSettings) -> list[str]:
        """Return what contradicts itself or the run's settings."""
        wrong = number_problems("round", self.round, 0 if self.phase is Phase.WAIT else 1, MAX_ROUND_NUMBER)
        if self.phase is Phase.OPEN:
            wrong += positive_problems("deadline_s", self.deadline_s, MAX_DEADLINE_S)
            wrong += number_problems("counted_round", self.counted_round, 0, self.round - 1)
        if self.phase in (Phase.FINISHED, Phase.EVALUATE, Phase.CALIBRATE) and self.round < run.rounds:
            wrong.append(f"round: a run of {run.rounds} rounds has not finished after round {self.round}")
        if self.phase is Phase.EVALUATE:
            wrong += number_problems("subjects", self.subjects, 1, MAX_SUBJECTS)
        if self.phase is Phase.CALIBRATE and self.temperature != 0:
            wrong += number_problems("temperature", self.temperature, *TEMPERATURES)
        return wrong


@dataclass(frozen=True, eq=False)
class GlobalModel:
    """The model that a round starts from."""

    round: int
    params: Params
    sha256: str  # params_sha256(params)
    calibration: Calibration | None = None  # of a run's final model, once the silos' counts have made one


@dataclass(frozen=True)
class ClassCount:
    """Correct predictions in one class."""

    label: int  # index in the run's labels
    correct: int
    count: int


@dataclass(frozen=True)
class Evaluation:
    """Results on a silo's held-out clips: of the incoming global model before local training, or of a subject."""

    loss: float  # mean cross-entropy, nats
    correct: int
    count: int
    by_class: tuple[ClassCount, ...] = ()  # ascending labels; only what the silo's policy allows


@dataclass(frozen=True)
class SubjectEvaluation:
    """Results of one of the models of a final evaluation on a silo's held-out clips."""

    subject: int  # 0: the run's final model; OWN_HEAD: a head that the silo trained on its own clips alone
    evaluation: Evaluation


@dataclass(frozen=True, eq=False)
class EncodedUpdate:
    """A silo's parameters, encoded by a lossy codec as a delta against the round's model."""

    codec: Codec
    payload: bytes
    error: float  # norm of what the codec left out over the norm of the delta


@dataclass(frozen=True, eq=False)
class Update:
    """A silo's answer to a round: its trained parameters and the number of examples behind them."""

    round: int
    base_sha256: str  # GlobalModel.sha256 that training started from
    update_id: str  # 32 hexadecimal digits: a hash of run, round, model and silo, the same over retries
    examples: int
    params: Params | None  # None: see ``encoded``
    evaluation: Evaluation | None = None
    encoded: EncodedUpdate | None = None
    shared: bool = False  # the silo agrees that other silos that agree evaluate it (final_evaluation = "sites")


@dataclass(frozen=True)
class Receipt:
    """Confirmation that the update is durable on the coordinator; the same bytes again get the same receipt."""

    round: int
    update_id: str
    sha256: str  # of the payload as received
