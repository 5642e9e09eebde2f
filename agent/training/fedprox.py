"""FedProx on the silo (Li et al. 2020, arXiv 1812.06127): training is pulled towards the round's model.

The local loss is L(w) + (mu/2)·‖w - w_t‖², with w_t the round's model. The coordinator averages as in FedAvg.
"""

from __future__ import annotations

from ...fedproto.head import Params
from ...fedproto.records import Strategy
from .trainer import Anchor


def anchor(strategy: Strategy, params: Params, _: object) -> Anchor:
    """Return the proximal term around the round's model ``params``."""
    return Anchor(strategy.mu, params)
