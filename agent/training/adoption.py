"""The heads that a silo may use after a run, and the choice among them on its own held-out clips.

The silo's own head is trained on its own clips alone, with the run's settings, as ``flamest-agent train`` does. It
stays in use unless another one is better beyond doubt (docs/decisions/048-a-gain-beyond-doubt.md). Nothing of this
leaves the silo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...fedproto.calibration import fit_temperature, probabilities
from ...fedproto.head import Params
from ...fedproto.records import RunSettings
from .dataset import FeatureTable
from .federated import RoundKey, run_round
from .gain import DOUBT, NEEDED_GROUPS, Correct, Gain, Values, doubts, paired_gain
from .local import LOCAL, train_locally
from .trainer import HeadTrainer, Trainer

Candidate = Literal["own", "federated", "blend", "tuned"]
OTHERS: tuple[Candidate, ...] = ("federated", "blend", "tuned")  # the earlier one of equals is used
TUNING_ROUNDS = 3  # of the run's local epochs
BLEND = 0.5  # share of the tuned head


class Adoption(msgspec.Struct, frozen=True):
    """A silo's choice, and the figures that it was made from. They stay in the silo."""

    model: Candidate
    clips: int  # held out
    groups: int
    correct: dict[Candidate, int]  # of these clips
    gain: Gain  # of the federated model over the own head
    doubts: dict[str, float]  # p-values

    @property
    def counts(self) -> str:
        """The candidates' correct predictions, in words."""
        counts = ", ".join(f"{IN_WORDS[name]} {right}" for name, right in self.correct.items())
        return f"of {self.clips} held-out clips in {self.groups} groups are right: {counts}"

    @property
    def text(self) -> str:
        """The reason, for the status."""
        found = self.counts
        if self.model != "own":
            return f"{found}; {IN_WORDS[self.model]} is in use, better than the own one beyond doubt"
        why = "" if self.groups >= NEEDED_GROUPS else f" (on fewer than {NEEDED_GROUPS} groups nothing can be)"
        return f"{found}; none is better than the own one beyond doubt, so this stays in use{why}"


IN_WORDS: dict[Candidate, str] = {
    "own": "the own head",
    "federated": "the final model",
    "blend": "the blend",
    "tuned": "the tuned one",
}


def own_head(trainer: Trainer, run: RunSettings, train: FeatureTable) -> Params:
    """Train a head on this silo's rows alone, with the run's settings. Raises DataError (``diverged``)."""
    nothing = train.rows(np.empty(0, np.int64))
    return train_locally(trainer, train, nothing, run.train, rounds=run.rounds, seed=run.seed).params


def candidates(
    trainer: Trainer, run: RunSettings, federated: Params, own: Params, train: FeatureTable
) -> dict[Candidate, Params]:
    """Return the heads to choose among.

    ``tuned``: the federated model, trained further on this silo's rows (Yu et al. 2020, arXiv 2002.04758). ``blend``:
    half-way to it, in its parameters (Wortsman et al. 2022, arXiv 2109.01903). Both are left out where that training
    diverges.
    """
    found: dict[Candidate, Params] = {"own": own, "federated": federated}
    try:
        tuned = _tuned_head(trainer, run, federated, train)
    except DataError:
        return found
    blend = {name: _between(federated[name], tuned[name]) for name in federated}
    return {**found, "blend": blend, "tuned": tuned}


class Answered(NamedTuple):
    """A head's answers on N clips."""

    correct: Correct  # [N]
    score: Values  # [N], the calibrated probability of the right class


def choose_head(
    trainer: HeadTrainer, heads: Mapping[Candidate, Params], held_out: FeatureTable, groups: Sequence[str]
) -> Adoption:
    """Choose among ``heads`` on a silo's held-out clips, one or more; ``groups``: of every clip."""
    return choose_by(
        {name: answered(trainer.logits(params, held_out.x), held_out.y) for name, params in heads.items()}, groups
    )


def answered(logits: npt.NDArray[Any], y: npt.NDArray[np.int64]) -> Answered:
    """Return the answers of ``logits`` [N, classes] on clips of the classes ``y`` [N].

    The score is the chance that an answer drawn from the probabilities is right, at the head's own temperature, so that
    it is no advantage to be too sure. It varies less from clip to clip than right and wrong, so it shows more. Where
    the logits are not finite, the answer is wrong and the score 0.
    """
    finite = np.isfinite(logits).all(axis=1)
    correct, score = np.zeros(len(y), np.bool_), np.zeros(len(y))
    if finite.any():
        known, of_class = logits[finite].astype(np.float64), y[finite]
        correct[finite] = known.argmax(axis=1) == of_class
        score[finite] = probabilities(known / fit_temperature(known, of_class))[np.arange(len(of_class)), of_class]
    return Answered(correct, score)


def choose_by(answers: Mapping[Candidate, Answered], groups: Sequence[str]) -> Adoption:
    """Choose by the candidates' answers: the own head, or the best of those beyond doubt.

    Beyond doubt are those whose scores pass the test, with no fewer correct predictions than the own head.
    """
    own, others = answers["own"], {name: answers[name] for name in OTHERS if name in answers}
    right = {name: int(each.correct.sum()) for name, each in answers.items()}
    scores: dict[str, Values] = {name: each.score for name, each in others.items()}
    found = doubts(own.score, scores, groups)
    better = [name for name in others if found[name] <= DOUBT and right[name] >= right["own"]]
    chosen: Candidate = max(better, key=lambda name: float(scores[name].sum()), default="own")
    gain = paired_gain(others["federated"].correct, own.correct, groups)
    return Adoption(chosen, len(own.correct), len(set(groups)), right, gain, found)


def rows_sha256(table: FeatureTable) -> str:
    """Return a hash of rows and their classes: a head trained on others is trained again."""
    digest = hashlib.sha256(np.ascontiguousarray(table.x).tobytes())
    digest.update(table.y.tobytes())
    return digest.hexdigest()


def _tuned_head(trainer: Trainer, run: RunSettings, federated: Params, train: FeatureTable) -> Params:
    """Train the federated model further, with the rates of a run's first rounds."""
    params = federated
    for number in range(1, TUNING_ROUNDS + 1):
        params = run_round(trainer, params, train, run.train, RoundKey(run.seed, number, LOCAL)).params
    return params


def _between(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    mean = (1 - BLEND) * first.astype(np.float64) + BLEND * second.astype(np.float64)
    return mean.astype(np.float32)
