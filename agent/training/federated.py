"""One silo's work in one round, for every strategy: called by the daemon's worker, simulations and local training.

The client's part of each algorithm is in its own file; here they are composed. An algorithm without a term of its own
(FedAvg, server optimisers, robust means) trains on the plain loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import msgspec

from ...fedproto.head import Params
from ...fedproto.records import RunSettings, Strategy, TrainSettings
from . import feddyn, fedprox
from .dataset import FeatureTable
from .feddyn import Correction
from .private import UNPROTECTED, Protection, fresh_generator, protected
from .trainer import Anchor, Trained, Trainer, shuffle_seed

# By the strategy's name: the term that it adds to the silo's loss, and the correction that the silo carries on.
ANCHORS: dict[str, Callable[[Strategy, Params, Correction], Anchor]] = {
    "fedprox": fedprox.anchor,
    "feddyn": feddyn.anchor,
}
CORRECTIONS: dict[str, Callable[[Strategy, Params, Params, Correction], Correction]] = {
    "feddyn": feddyn.next_correction,
}


class RoundKey(NamedTuple):
    """The seed of a round's shuffles, and the round's place in the learning rate's decay."""

    run_seed: int
    round_number: int  # from 1
    silo: str


def train_silo(
    trainer: Trainer,
    run: RunSettings,
    silo: str,
    round_number: int,
    params: Params,
    table: FeatureTable,
    correction: Correction,
    protection: Protection = UNPROTECTED,
) -> tuple[Trained, Correction]:
    """Train the round's model on the silo's rows; returns the result and the silo's next correction.

    ``correction`` is what the silo's last round THAT COUNTED returned: empty before the first, and with every strategy
    that carries none. ``protection``, the silo's policy, is applied to the result before the next correction is
    computed from it. Raises DataError (``diverged``, ``class_balanced``).
    """
    strategy = run.strategy
    anchor = ANCHORS[strategy.name](strategy, params, correction) if strategy.name in ANCHORS else None
    key = RoundKey(run.seed, round_number, silo)
    trained = run_round(trainer, params, table, run.train, key, anchor=anchor, protection=protection)
    trained = replace(trained, params=protected(params, trained.params, protection, fresh_generator()))
    if strategy.name not in CORRECTIONS:
        return trained, {}
    return trained, CORRECTIONS[strategy.name](strategy, params, trained.params, correction)


def run_round(
    trainer: Trainer,
    params: Params,
    table: FeatureTable,
    settings: TrainSettings,
    key: RoundKey,
    *,
    anchor: Anchor | None = None,
    protection: Protection = UNPROTECTED,
) -> Trained:
    """Run a round's epochs, with its learning rate and its shuffles: the loop of federated and local training."""
    seed = shuffle_seed(*key)
    return trainer.train(
        params,
        table,
        round_settings(settings, key.round_number),
        seed=seed,
        anchor=anchor,
        protection=protection,
    )


def round_settings(settings: TrainSettings, round_number: int) -> TrainSettings:
    """Return ``settings`` with the learning rate of round ``round_number`` (from 1)."""
    rate = settings.learning_rate * settings.learning_rate_decay ** (round_number - 1)
    return msgspec.structs.replace(settings, learning_rate=rate)


def carries_correction(strategy: Strategy) -> bool:
    """True for a strategy whose silos carry a correction from round to round."""
    return strategy.name in CORRECTIONS
