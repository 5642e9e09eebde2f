"""``[policy]`` in agent.toml: this silo's own rules, which the run cannot change (docs/guides/privacy.md)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Literal

import msgspec

from ...base.errors import DataError
from ...fedproto.codecs import Codec
from ...fedproto.head import without_defaults
from ...fedproto.records import TrainSettings
from ..training.private import Protection, Sampling
from .accountant import Spend, epsilon_of

MIN_SAMPLES_FLOOR = 256  # clips: below it embeddings were computed back from updates (docs/guides/privacy.md)
CLASS_FLOOR = 10  # clips of a class: of fewer, an update tells too much (docs/guides/privacy.md, "Rare classes")
HELD_OUT_SHARE = 8  # of min_samples, this part must be held out for an evaluation to be reported: 32 of 256 clips
DEFAULT_EVALUATIONS = 400  # five runs of 80 rounds
MONTHLY_EVALUATIONS = 1200  # fifteen; many more would average the noise on evaluations out (docs/guides/privacy.md)
MOST_EVALUATIONS = 1_000_000  # of either limit
EVALUATION_NOISE = 3.0  # clips; with less, clips were computed back from evaluations (docs/guides/privacy.md)
DEFAULT_CLIP_NORM, DEFAULT_NOISE = 1.0, 1e-3  # of privacy = "clip", unless agent.toml sets them
DEFAULT_SAMPLE_CLIP, DEFAULT_NOISE_MULTIPLIER = 1.0, 1.0  # of privacy = "record-dp"
DEFAULT_EPSILON, DEFAULT_DELTA = 8.0, 1e-5  # of privacy = "record-dp"

Reason = Literal[
    "few_samples",
    "budget_spent",
    "class_balanced",
    "withdrawn",
    "too_many_messages",  # more than the ledger's quotas allow
    "not_asked_for",  # an evaluation that the run's settings do not ask for
    "evaluated_before",
    "calibrated_before",
]


class PolicyRefused(DataError):
    """This silo's own policy forbids a message; nothing of it was sent. ``reason`` names the rule."""

    code = "policy_refused"
    reason: Reason
    examples: int  # clips of the update, if known

    def __init__(self, message: str, *, reason: Reason, examples: int = 0, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.reason = reason
        self.examples = examples


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table. What is not set has the default of its mode; keys of another mode are an error."""

    min_samples: int = MIN_SAMPLES_FLOOR  # an update trained on fewer clips is not sent
    min_samples_override: bool = False  # allows min_samples or min_class_samples below the floor; the ledger records it
    # Clips of classes with fewer clips to train on are left out of updates, and still used for an own head; unset: 10,
    # 1 where min_samples is below its floor; not with record-dp
    min_class_samples: int | None = None
    hold_out: float = 0.2  # share of this silo's groups kept from training, 0 to 0.9
    codec: Codec | None = None  # the coarsest that this silo's updates may be coded with; the run's when not set
    report_evaluation: bool | None = (
        None  # loss and correct predictions on held-out clips; unset: except with record-dp
    )
    report_loss: Literal["rounded", "exact"] = "rounded"  # capped for each clip and rounded, or in full precision
    report_loss_override: bool = False  # allows report_loss = "exact"; the ledger records it
    evaluation_noise: float = EVALUATION_NOISE  # standard deviation of the noise on reported evaluations, in clips
    evaluations_per_day: int = DEFAULT_EVALUATIONS  # models whose evaluation is reported within 24 hours
    evaluations_per_month: int = MONTHLY_EVALUATIONS  # models whose evaluation is reported within 30 days
    report_classes: int = 0  # report by class too, for classes with at least so many held-out clips; 0: never
    report_gain: bool = False  # report, where the run asks, how a head trained on this silo's clips alone does
    share_for_evaluation: bool = False  # silos that share evaluate each other's last models
    refuse_worse: bool = False  # keep the own model where the final one is worse on the held-out clips
    # The model in use after a run; auto: this silo's own, unless another is better beyond doubt; unset: refuse_worse's,
    # and no gain over a head of this silo's own is measured
    adopt: Literal["auto", "federated", "own"] | None = None
    report_counts: Literal["exact", "power-of-two"] = "exact"  # numbers of clips, as they are reported
    # clip: every update is clipped and noised; record-dp: differential privacy for every clip, within a budget.
    privacy: Literal["off", "clip", "record-dp"] = "off"
    clip_norm: float | None = None  # clip: the update's difference from the round's model has at most this norm
    noise: float | None = None  # clip: standard deviation of the noise on every parameter, in units of clip_norm
    sample_clip: float | None = None  # record-dp: the gradient of one clip has at most this norm
    noise_multiplier: float | None = None  # record-dp: of a step's sum of gradients, in units of sample_clip
    epsilon: float | None = None  # record-dp: the budget of all runs together; training stops when it is spent
    delta: float | None = None  # record-dp: probability with which epsilon may not hold

    @property
    def protection(self) -> Protection:
        """Protection that the mode applies in training and to the update."""
        if self.privacy == "clip":
            return Protection("clip", _or(self.clip_norm, DEFAULT_CLIP_NORM), _or(self.noise, DEFAULT_NOISE))
        if self.privacy == "record-dp":
            noise = _or(self.noise_multiplier, DEFAULT_NOISE_MULTIPLIER)
            return Protection("record-dp", _or(self.sample_clip, DEFAULT_SAMPLE_CLIP), noise)
        return Protection()

    @property
    def budget(self) -> tuple[float, float] | None:
        """(epsilon, delta) with record-dp."""
        if self.privacy != "record-dp":
            return None
        return _or(self.epsilon, DEFAULT_EPSILON), _or(self.delta, DEFAULT_DELTA)

    @property
    def reports(self) -> bool:
        """True when evaluations are reported. Record-dp's epsilon does not cover held-out clips."""
        return self.privacy != "record-dp" if self.report_evaluation is None else self.report_evaluation

    @property
    def min_held_out(self) -> int:
        """Fewest held-out clips on which an evaluation is reported."""
        return -(-self.min_samples // HELD_OUT_SHARE)

    @property
    def class_floor(self) -> int:
        """Fewest clips to train on of a class that is in an update.

        1 with record-dp: whether a class is left out would tell of single clips, and epsilon covers what is in. And
        where ``min_samples`` is below its floor: what few clips tell was accepted for all of them.
        """
        if self.privacy == "record-dp":
            return 1
        if self.min_class_samples is not None:
            return self.min_class_samples
        return CLASS_FLOOR if self.min_samples >= MIN_SAMPLES_FLOOR else 1

    @property
    def sha256(self) -> str:
        """Hash of all keys: an update made under another policy is not sent under this one."""
        keys = without_defaults(
            msgspec.to_builtins(self), {"report_gain": False, "adopt": None, "min_class_samples": None}
        )  # a policy without them has the same as ever
        return hashlib.sha256(msgspec.json.encode(keys)).hexdigest()

    def rounded_count(self, count: int) -> int:
        """Return a number of clips as it is reported: exact, or the nearest power of two (on a log scale)."""
        if self.report_counts == "exact" or count < 1:
            return count
        return int(2 ** round(math.log2(count)))

    def overrides(self) -> tuple[str, ...]:
        """Return where the policy is weaker than FLAMeST's default, for the ledger and the log."""
        return self.overridden(0, evaluation=True)

    def overridden(self, clips: int, *, evaluation: bool, update: bool = True) -> tuple[str, ...]:
        """Return those ``overrides`` that a message needs: an update of so many clips, an evaluation, or both."""
        given_up = []
        if update and self.min_class_samples is not None and self.min_class_samples < CLASS_FLOOR:
            given_up.append(f"min_class_samples {self.min_class_samples} is below the floor of {CLASS_FLOOR}")
        if self.min_samples < MIN_SAMPLES_FLOOR and clips < MIN_SAMPLES_FLOOR:
            given_up.append(f"min_samples {self.min_samples} is below the floor of {MIN_SAMPLES_FLOOR}")
        if self.evaluation_noise < EVALUATION_NOISE and self.reports and evaluation:
            given_up.append(f"evaluation_noise {self.evaluation_noise:g} is below {EVALUATION_NOISE:g} clips")
        if self.evaluations_per_month > MONTHLY_EVALUATIONS and self.reports and evaluation:
            given_up.append(f"evaluations_per_month {self.evaluations_per_month} is above {MONTHLY_EVALUATIONS}")
        if self.privacy == "record-dp" and self.reports and evaluation:
            given_up.append("report_evaluation with record-dp tells of held-out clips, which epsilon does not cover")
        if self.report_loss == "exact" and self.reports and evaluation:
            given_up.append("report_loss is exact: losses in full precision can give held-out clips away")
        return tuple(given_up)

    def permit(
        self, examples: int, train: TrainSettings, spends: Iterable[Spend], *, left_out: int = 0
    ) -> Spend | None:
        """Return the privacy that training on so many clips will spend; None without record-dp.

        Raises PolicyRefused: ``few_samples``; ``class_balanced`` and ``budget_spent`` with record-dp. ``spends``: of
        all updates that ever left. ``left_out``: clips of rare classes, which do not count.
        """
        self.require_samples(examples, left_out=left_out)
        if self.budget is None:
            return None
        if train.class_balanced:
            raise PolicyRefused(
                "the run weighs clips by the classes of all (class_balanced), which record-dp cannot account for",
                reason="class_balanced",
                examples=examples,
            )
        sampling = Sampling.of(examples, train)
        spend = Spend(sampling.rate, self.protection.noise, sampling.steps)
        epsilon, delta = self.budget
        if (after := epsilon_of([*spends, spend], delta)) > epsilon:
            raise PolicyRefused(
                f"another round would bring this silo's privacy loss to epsilon {after:.3g}, its budget is {epsilon:g} "
                f"(delta {delta:g}): training has stopped",
                reason="budget_spent",
                examples=examples,
            )
        return spend

    def require_samples(self, examples: int, *, left_out: int = 0) -> None:
        """Raise PolicyRefused (``few_samples``) for an update trained on fewer clips than ``min_samples``."""
        if examples < self.min_samples:
            beside = f" (and {left_out} of classes with fewer than {self.class_floor})" if left_out else ""
            raise PolicyRefused(
                f"{examples} labelled clips to train on{beside}, this silo's policy asks for {self.min_samples}: "
                "no update was sent. Add clips, or lower policy.min_samples if you accept what an update of few clips "
                "can tell (docs/guides/privacy.md, 'Small sites')",
                reason="few_samples",
                examples=examples,
            )

    def problems(self) -> list[str]:
        """Return the problems of the keys, each starting with the key's name."""
        wrong = []
        if self.min_samples < 1:
            wrong.append(f"min_samples: expected 1 or more, {MIN_SAMPLES_FLOOR} without min_samples_override")
        elif self.min_samples < MIN_SAMPLES_FLOOR and not self.min_samples_override:
            wrong.append(
                f"min_samples: {self.min_samples} is below the floor of {MIN_SAMPLES_FLOOR}, below which clips' "
                "embeddings can be reconstructed from updates (docs/guides/privacy.md); set min_samples_override = "
                "true if you accept that"
            )
        wrong += self._class_floor_problems()
        if not 0.0 <= self.hold_out <= 0.9:
            wrong.append("hold_out: expected 0 to 0.9")
        if self.report_loss == "exact" and not self.report_loss_override:
            wrong.append(
                "report_loss: losses in full precision of models that the coordinator chooses give held-out clips away "
                "(docs/guides/privacy.md); set report_loss_override = true if you accept that"
            )
        for key in ("evaluations_per_day", "evaluations_per_month"):
            if not 0 <= getattr(self, key) <= MOST_EVALUATIONS:
                wrong.append(f"{key}: expected 0 (none) to {MOST_EVALUATIONS}")
        if not 0.0 <= self.evaluation_noise <= 1e6:
            wrong.append("evaluation_noise: expected 0 (none) to 1000000 clips")
        if self.report_classes < 0:
            wrong.append("report_classes: expected 0 (never) or more")
        elif self.report_classes and self.report_counts != "exact":
            wrong.append("report_classes: reports exact counts; expected 0, or report_counts = 'exact'")
        if self.report_gain and (not self.reports or self.privacy == "record-dp"):
            wrong.append(
                "report_gain: what a head trained alone does is an evaluation, and epsilon does not cover it; expected "
                "false with report_evaluation = false or privacy = 'record-dp'"
            )
        if self.adopt is not None and self.refuse_worse:
            wrong.append("refuse_worse: adopt says which model is used; expected one of the two keys")
        return wrong + self._mode_problems()

    def _class_floor_problems(self) -> list[str]:
        least = self.min_class_samples
        if least is None:
            return []
        if self.privacy == "record-dp":
            return ["min_class_samples: not with privacy = 'record-dp', whose epsilon covers clips of every class"]
        if least < 1:
            return [f"min_class_samples: expected 1 or more, {CLASS_FLOOR} without min_samples_override"]
        if least < CLASS_FLOOR and not self.min_samples_override:
            return [
                f"min_class_samples: {least} is below the floor of {CLASS_FLOOR}, below which an update tells too much "
                "of the clips of a class (docs/guides/privacy.md); set min_samples_override = true if you accept that"
            ]
        return []

    def _mode_problems(self) -> list[str]:
        wrong = []
        owners = {
            "clip": ("clip_norm", "noise"),
            "record-dp": ("sample_clip", "noise_multiplier", "epsilon", "delta"),
        }
        for owner, keys in owners.items():
            for key in keys:
                value = getattr(self, key)
                if value is not None and self.privacy != owner:
                    wrong.append(f"{key}: only with privacy = '{owner}'")
                elif value is not None and not (
                    math.isfinite(value) and (value > 0 or (key == "noise" and value == 0))
                ):
                    wrong.append(f"{key}: expected more than 0")
        if self.delta is not None and self.delta >= 1:
            wrong.append("delta: expected less than 1")
        return wrong


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
