"""Noise on reported evaluations, so that no single held-out clip can be read out of them.

Rounding does not do that: a model can be made whose results are constant for all clips but one, just below a rounding
step, and then every report is a bit about that clip. Normal noise of a few clips' size hides a single clip, and
averages out over silos and rounds (docs/guides/privacy.md).

The noise of a report follows from a secret of this silo, the held-out clips and the model, its values and its head (the
same values with standardised features give other results): the same model gets the same noise whenever it is evaluated,
so asking again tells nothing, and an update that is made again after a crash has the same bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from statistics import NormalDist

import msgspec

from ...base.errors import DataError
from ...base.files import read_regular, write_atomic
from ...fedproto.head import HeadSpec, Params, params_sha256
from ..training.dataset import FeatureTable

SECRET_FILE, SECRET_BYTES = "noise.secret", 32
_STEPS = 1 << 52  # of a uniform number


def noise_secret(state: Path) -> bytes:
    """Return the secret of the state folder ``state``, made when there is none. Raises StorageError."""
    path = state / SECRET_FILE
    try:
        secret = read_regular(path, largest=SECRET_BYTES) if path.exists() else b""
    except DataError:  # not a secret of this program
        secret = b""
    if len(secret) != SECRET_BYTES:
        secret = os.urandom(SECRET_BYTES)
        write_atomic(path, secret, mode=0o600)
    return secret


class ReportNoise:
    """Noise of one report: standard normal numbers by name."""

    def __init__(self, secret: bytes, head: HeadSpec, params: Params, held_out: FeatureTable) -> None:
        clips = hashlib.sha256(held_out.x.tobytes() + held_out.y.tobytes()).digest()
        model = bytes.fromhex(params_sha256(params)) + msgspec.json.encode(head)  # the same values are two models
        self._key = hmac.digest(secret, clips + model, "sha256")

    def draw(self, name: str) -> float:
        """Return the number called ``name``, the same at every call."""
        drawn = int.from_bytes(hmac.digest(self._key, name.encode(), "sha256")[:8]) % _STEPS
        return NormalDist().inv_cdf((drawn + 0.5) / _STEPS)

    def count(self, name: str, correct: int, clips: int, deviation: float) -> int:
        """Return a number of correct predictions among ``clips`` with noise of ``deviation`` clips, from 0 to clips."""
        return min(max(round(correct + deviation * self.draw(name)), 0), clips)
