"""The model that a round gives out: with a lossy codec, what the silos can make of the one before it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..fedproto.codecs import code, moved, row_of
from ..fedproto.head import Params, tensors_of
from ..fedproto.records import RunSettings
from .aggregate import Aggregated, ServerState


@dataclass(frozen=True, eq=False)
class Broadcast:
    """The next round's model, and how it travels."""

    params: Params  # what every silo has, to the bit
    state: ServerState
    payload: bytes = b""  # the delta from the round's model; empty with fp32
    error: float = 0.0  # norm of what the codec left out over the norm of what was to be sent


def broadcast(run: RunSettings, base: Params, made: Aggregated) -> Broadcast:
    """``made`` as silos that have ``base`` will have it.

    With a lossy codec the model itself becomes what the codec makes of it, so that it has one hash everywhere, and
    what was left out is carried to the next round (error feedback). Raises DataError (``not_finite``).
    """
    if run.codec == "fp32":
        return Broadcast(made.params, made.state)
    left_out = row_of(made.state.residual) if made.state.residual else None
    coded = code(run.codec, run.head, made.params, base, left_out)
    params = moved(run.head, base, coded.decoded, whose="the next model")
    residual = {name: tensor.astype(np.float64) for name, tensor in tensors_of(run.head, coded.residual).items()}
    return Broadcast(params, replace(made.state, residual=residual), coded.payload, coded.error)
