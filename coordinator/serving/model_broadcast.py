"""The model on its way to the silos: whole, or with a lossy codec as a delta from the model before it.

``broadcast`` decides which model that is; ``ModelMessages`` holds it as messages, made once and sent to every silo.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...base.errors import DataError
from ...fedproto import messages
from ...fedproto.calibration import Calibration
from ...fedproto.calls import CHUNK_BYTES
from ...fedproto.codecs import Codec, add_delta, encode_delta, flatten_params
from ...fedproto.head import Params, TensorLayout, split_params
from ...fedproto.records import RunSettings
from ...fedproto.tensors import chunks, encode_params, payload_bytes
from ..strategies.algorithm import ServerState
from ..strategies.composition import Aggregated


@dataclass(frozen=True, eq=False)
class Broadcast:
    """The next round's model as every silo will have it."""

    params: Params  # the same on every silo, to the bit
    state: ServerState
    payload: bytes = b""  # the delta from the round's model; empty with fp32
    error: float = 0.0  # norm of what the codec left out over the norm of what was to be sent


def broadcast(codec: Codec, spec: TensorLayout, base: Params, aggregated: Aggregated) -> Broadcast:
    """Return ``aggregated`` as silos that have ``base`` will have it.

    With a lossy codec the model itself becomes what the codec makes of it, so that it has one hash everywhere, and
    what was left out is carried to the next round (error feedback). Raises DataError (``not_finite``).
    """
    if codec == "fp32":
        return Broadcast(aggregated.params, aggregated.state)
    left_out = flatten_params(aggregated.state.residual) if aggregated.state.residual else None
    encoded = encode_delta(codec, spec, aggregated.params, base, left_out)
    params = add_delta(spec, base, encoded.decoded, whose="the next model")
    residual = {name: tensor.astype(np.float64) for name, tensor in split_params(spec, encoded.residual).items()}
    return Broadcast(params, replace(aggregated.state, residual=residual), encoded.payload, encoded.error)


@dataclass(frozen=True)
class _Delta:
    """The current model for a silo that has the one before it."""

    base_sha256: str
    size: int
    parts: list[bytes]


class ModelMessages:
    """The current model as messages, and the bytes of it that were sent in this round."""

    def __init__(self, run: RunSettings, params: Params) -> None:
        self._run = run
        self._size = payload_bytes(run.head)
        self._parts = data_parts(encode_params(run.head, params))
        self._delta: _Delta | None = None  # with a lossy codec; lost at a restart
        self._replaced = 0  # times that another model came
        self.calibration: Calibration | None = None  # of a finished run's model
        self.sent: Counter[str] = Counter()  # bytes of the open round's model, by silo

    def replace(self, base_sha256: str, model: Broadcast, parts: list[bytes]) -> None:
        """Send ``model`` from now on, whole as ``parts``; the model before it has the hash ``base_sha256``."""
        self._delta = _Delta(base_sha256, len(model.payload), data_parts(model.payload)) if model.payload else None
        self._parts = parts
        self._replaced += 1

    def messages(self, round_number: int, model_sha256: str, held_sha256: str) -> Iterator[bytes]:
        """Yield a header and the model's bytes, or what a silo that holds ``held_sha256`` needs to make it.

        It keeps no model in memory for a silo that takes its time: once there is another one, it raises DataError
        (``stale_round``).
        """
        size, delta = self._size, False
        codec: Codec = "fp32"
        if held_sha256 == model_sha256:
            size = 0
        elif self._delta is not None and held_sha256 == self._delta.base_sha256:
            size, codec, delta = self._delta.size, self._run.codec, True
        replaced = self._replaced
        header = messages.ModelHeader(round_number, model_sha256, size, codec, self.calibration)
        yield messages.encode_model_header(header)
        for index in range(-(-size // CHUNK_BYTES)):
            if self._replaced != replaced:
                raise DataError(f"round {round_number} closed before its model was fetched", code="stale_round")
            yield (self._delta.parts if delta and self._delta is not None else self._parts)[index]


def data_parts(payload: bytes) -> list[bytes]:
    """Return a model's payload as messages."""
    return [messages.encode_model_data(piece) for piece in chunks(payload)]
