"""FedDyn on the silo (Acar et al. 2021, arXiv 2111.04263): each silo carries a correction h_i from round to round.

The local loss is L(w) - <h_i, w> + (alpha/2)·‖w - w_t‖², with w_t the round's model. After the round h_i becomes
h_i - alpha·(w_i - w_t), where w_i is the model that the silo sends. ``client_state`` keeps h_i on disk.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...fedproto.head import Params
from ...fedproto.records import Strategy
from .trainer import Anchor

Correction = Mapping[str, npt.NDArray[np.float64]]  # h_i by the head's tensors; empty: all zero


def anchor(strategy: Strategy, params: Params, correction: Correction) -> Anchor:
    """Return both terms as one: -<h, w> + (alpha/2)·‖w - w_t‖² is (alpha/2)·‖w - (w_t + h/alpha)‖² and a constant."""
    centre = {name: tensor + _of(correction, name) / strategy.alpha for name, tensor in params.items()}
    return Anchor(strategy.alpha, centre)


def next_correction(strategy: Strategy, params: Params, sent: Params, correction: Correction) -> Correction:
    """Return h_i after a round that started from ``params`` and in which the silo sent ``sent``."""
    moved = {name: sent[name].astype(np.float64) - tensor for name, tensor in params.items()}
    return {name: _of(correction, name) - strategy.alpha * moved[name] for name in params}


def _of(correction: Correction, name: str) -> npt.NDArray[np.float64] | float:
    return correction[name] if correction else 0.0
