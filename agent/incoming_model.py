"""A model as it arrives: a header, then the values in pieces, each checked before memory is spent on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..base.errors import DataError
from ..fedproto import messages
from ..fedproto.bounds import MAX_WEIGHT, shortened
from ..fedproto.calibration import Calibration
from ..fedproto.codecs import apply_delta, check_size
from ..fedproto.head import Params, ParamsDigest, params_sha256
from ..fedproto.records import RunSettings
from ..fedproto.tensors import decode_params


@dataclass(frozen=True, eq=False)
class HeldModel:
    """A model that the silo has, from which the coordinator may send a difference."""

    sha256: str
    params: Params
    calibration: Calibration | None = None  # of a run's final model


def receive_model(run: RunSettings, round_number: int, parts: Iterator[bytes], held: HeldModel | None) -> HeldModel:
    """Receive a model of ``round_number`` with the hash that its header says.

    The hash of a whole model is computed while its bytes arrive. Raises DataError: ``malformed``, ``digest`` (another
    round, or another hash than the header's), ``codec``, ``payload_size``, ``bad_codes``, ``not_finite``,
    ``model_out_of_range``: decided by the values alone, so that no answer tells of the silo's clips.
    """
    header = messages.decode_model_part(next(parts, b""))
    if not isinstance(header, messages.ModelHeader):
        raise DataError(
            "the model was sent without a header",
            fix="ask the coordinator's operator: both sides may have different versions of flamest",
            code="malformed",
        )
    _check_header(run, round_number, header, held)
    digest = ParamsDigest(run.head)
    payload = _receive_payload(header, parts, digest)
    whose = f"model of round {header.round}"
    if held is not None and not payload:
        found = held
    elif held is not None and header.codec != "fp32":
        params = apply_delta(header.codec, run.head, payload, held.params, whose=whose)
        found = HeldModel(params_sha256(params), params)
    else:
        found = HeldModel(digest.hexdigest(), decode_params(run.head, payload, whose=whose))
    if found.sha256 != header.model_sha256:
        raise DataError(
            f"the {whose} has the hash {found.sha256[:12]}…, its header says {header.model_sha256[:12]}…",
            fix="the agent fetches it again; if it stays, tell the coordinator's operator",
            code="digest",
        )
    if any(np.abs(tensor).max() > MAX_WEIGHT for tensor in found.params.values()):
        raise DataError(
            f"the {whose} holds values beyond ±{MAX_WEIGHT:g}: it is neither trained nor evaluated",
            fix="ask the coordinator's operator if the run diverges",
            code="model_out_of_range",
        )
    return replace(found, calibration=header.calibration)


def _check_header(run: RunSettings, round_number: int, header: messages.ModelHeader, held: HeldModel | None) -> None:
    """Check, before anything is allocated, that this is the model that was asked for, and can be read."""
    if header.round != round_number:
        raise DataError(
            f"a model of round {header.round}, expected round {round_number}",
            fix="ask the coordinator's operator: both sides may have different versions of flamest",
            code="digest",
        )
    if header.calibration is not None and (problems := header.calibration.problems(run.head.outputs)):
        raise DataError(
            f"a calibration that is not of this model: {shortened('; '.join(problems))}",
            fix="ask the coordinator's operator: both sides may have different versions of flamest",
            code="malformed",
        )
    if header.codec not in ("fp32", run.codec):
        raise DataError(
            f"a model in codec {header.codec}, the run's is {run.codec}",
            fix="ask the coordinator's operator: both sides may have different versions of flamest",
            code="codec",
        )
    if held is None and header.codec != "fp32":
        raise DataError(
            "the model was sent as a delta from one that this silo does not have",
            fix="ask the coordinator's operator: both sides may have different versions of flamest",
            code="malformed",
        )
    if header.payload_bytes or held is None:
        check_size(header.codec, run.head, header.payload_bytes, whose=f"model of round {header.round}")


def _receive_payload(header: messages.ModelHeader, parts: Iterator[bytes], digest: ParamsDigest) -> memoryview:
    payload, filled = np.empty(header.payload_bytes, np.uint8).data, 0
    for raw in parts:
        part = messages.decode_model_part(raw)
        if isinstance(part, messages.ModelHeader) or not 0 < len(part) <= len(payload) - filled:
            raise DataError(
                f"the model is not a header and {len(payload)} bytes",
                fix="the agent fetches it again; if it stays, tell the coordinator's operator",
                code="payload_size",
            )
        payload[filled : filled + len(part)] = part
        filled += len(part)
        if header.codec == "fp32":
            digest.update(part)
    if filled != len(payload):
        raise DataError(
            f"a model of {filled} bytes, its header announces {len(payload)}",
            fix="the agent fetches it again; if it stays, tell the coordinator's operator",
            code="payload_size",
        )
    return payload
