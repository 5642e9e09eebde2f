"""What one silo computes in one round, whatever the strategy: the daemon's worker and simulations call this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt

from ...fedproto.head import Params
from ...fedproto.records import RunSettings, TrainSettings
from .dataset import FeatureTable
from .private import OPEN, Protection, fresh_generator, protected
from .trainer import Anchor, HeadTrainer, Trained, shuffle_seed

Correction = Mapping[str, npt.NDArray[np.float64]]  # FedDyn's h_i by the head's tensors; empty: all zero


def train_silo(
    trainer: HeadTrainer,
    run: RunSettings,
    silo: str,
    round_number: int,
    params: Params,
    table: FeatureTable,
    correction: Correction,
    protection: Protection = OPEN,
) -> tuple[Trained, Correction]:
    """Train the round's model on the silo's rows; the result and the silo's next correction.

    ``correction`` is what came back from the silo's last round THAT COUNTED, empty before the first and for
    every strategy but feddyn. With feddyn (Acar et al. 2021, arXiv 2111.04263) the local loss is
    L(w) − <h_i, w> + (alpha/2)·‖w − w_t‖² and h_i becomes h_i − alpha·(w_i − w_t), w_i being what ``protection``
    (this silo's policy) lets out. Raises DataError (``diverged``, ``class_balanced``).
    """
    strategy = run.strategy
    anchor: Anchor | None = None
    if strategy.name == "fedprox":
        anchor = Anchor(strategy.mu, params)
    elif strategy.name == "feddyn":
        # −<h, w> + (alpha/2)·‖w − w_t‖² is (alpha/2)·‖w − (w_t + h/alpha)‖² and a constant.
        centre = {name: tensor + _of(correction, name) / strategy.alpha for name, tensor in params.items()}
        anchor = Anchor(strategy.alpha, centre)
    settings = round_settings(run.train, round_number)
    seed = shuffle_seed(run.seed, round_number, silo)
    trained = trainer.train(params, table, settings, seed=seed, anchor=anchor, protection=protection)
    trained = replace(trained, params=protected(params, trained.params, protection, fresh_generator()))
    if strategy.name != "feddyn":
        return trained, {}
    moved = {name: trained.params[name].astype(np.float64) - tensor for name, tensor in params.items()}
    return trained, {name: _of(correction, name) - strategy.alpha * moved[name] for name in params}


def round_settings(settings: TrainSettings, round_number: int) -> TrainSettings:
    """``settings`` with the learning rate of round ``round_number`` (from 1)."""
    rate = settings.learning_rate * settings.learning_rate_decay ** (round_number - 1)
    return msgspec.structs.replace(settings, learning_rate=rate)


def _of(correction: Correction, name: str) -> npt.NDArray[np.float64] | float:
    return correction[name] if correction else 0.0
