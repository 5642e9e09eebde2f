"""An encoder of one's own, opened: its module tried on seeded frames, as a network that an export takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, FlamestError
from ...runtime.bundle.encoder_record import EncoderRecord
from ...runtime.bundle.manifest import SpatioTemporal
from ..networks.frame_bytes import normalise_bytes
from ..networks.reference import VideoForm, VideoNetwork
from ..precision.calibration import seeded_frames
from ..weights.loading import LoadedVideo, describe_weights
from .pooled import chosen_output, pooled_module, positions, reference_embedding
from .settings import Encoder
from .sources import called_part, find_module

if TYPE_CHECKING:
    from torch import nn

_SEED = 45  # of the frames that a module is tried on
MAX_PARAMETERS = 500_000_000  # a graph is one file of 2 GiB at most


def open_encoder(encoder: Encoder) -> tuple[LoadedVideo, EncoderRecord]:
    """Make the encoder's module and try it on two clips.

    Raises as ``find_module``; DataError: ``encoder_output`` for an output that has no name in the settings,
    ``encoder_shape`` for one of another shape or width than expected, ``not_finite``, ``not_repeatable``.
    """
    found = find_module(encoder)
    if (size := sum(parameter.numel() for parameter in found.net.parameters())) > MAX_PARAMETERS:
        raise DataError(
            f"encoder '{encoder.name}' has {size:,} parameters, expected at most {MAX_PARAMETERS:,}: "
            "a graph is one file of 2 GiB at most",
            fix="take a smaller model of the family, or a part of it: part = 'vision_model'",
            code="encoder_too_large",
        )
    record = EncoderRecord(
        source=found.source,
        source_sha256=found.source_sha256,
        arguments=dict(encoder.arguments),
        call=dict(encoder.call),
        part=encoder.part,
        output=str(encoder.output),
        kind=encoder.kind,
        layout=encoder.layout,
        channels_last=encoder.pooling.channels_last,
        skip_tokens=encoder.pooling.skip_tokens,
        positions=encoder.pooling.positions,
        over_time=encoder.pooling.over_time,
    )
    called, rule = called_part(found.net, encoder.part), encoder.preprocessing.rule()
    width = _tried(called, record, encoder)
    form = VideoForm(encoder.frames, rule.size, width)
    network = VideoNetwork(
        name="encoder",
        full=lambda: (called, form),
        tiny=lambda: (called, form),
        module=lambda net, frames: pooled_module(net, record, frames),
        reference=lambda net, clips: reference_embedding(net, record, clips),
        preprocessing=lambda _: rule,
        pooling=describe_pooling(record),
    )
    source = describe_weights(called, name=found.name, revision=found.revision, licence=found.licence)
    return LoadedVideo(network, called, form, rule, source), record


def describe_pooling(record: EncoderRecord) -> str:
    """The pooling in words, for the manifest."""
    over = "mean of the positions" if record.positions == "mean" else "first token"
    if record.kind == "video":
        return over
    times = {
        "mean": "mean over frames",
        "motion": "mean absolute difference of neighbouring frames",
        "mean+motion": "mean over frames, then mean absolute difference of neighbouring frames",
    }
    return f"{over}, {times[record.over_time]}"


def check_same_encoder(found: SpatioTemporal, recorded: SpatioTemporal) -> None:
    """Raise DataError ``other_encoder``, naming what differs, unless the records are equal; weights are compared
    elsewhere."""
    if found == recorded:
        return
    here, there = (msgspec.to_builtins(each) for each in (found, recorded))
    pairs = [(name, here.get(name), there.get(name)) for name in here.keys() | there.keys() if name != "encoder"]
    mine, theirs = here.get("encoder", {}), there.get("encoder", {})
    pairs += [(name, mine.get(name), theirs.get(name)) for name in mine.keys() | theirs.keys()]
    differing = [f"{name} is {a}, the bundle's is {b}" for name, a, b in sorted(pairs, key=str) if a != b]
    raise DataError(
        f"the encoder is another one than that of the bundle: {'; '.join(differing)}",
        fix="give the TOML and the code that the bundle was exported with",
        code="other_encoder",
    )


def _tried(net: nn.Module, record: EncoderRecord, encoder: Encoder) -> int:
    """The width of the embedding, after the module was tried on seeded clips."""
    clips = _seeded_clips(encoder)
    try:
        expected = _first_output(net, record, clips)
        found = reference_embedding(net, record, clips)
        again = reference_embedding(net, record, clips)
    except FlamestError:
        raise
    except Exception as error:  # a module raises whatever it likes
        shape = "[1, 3, S, S]" if record.kind == "image" else f"a clip, {record.layout}"
        raise DataError(
            f"encoder '{encoder.name}' raised {type(error).__name__} for frames of {encoder.preprocessing.size} px "
            f"({shape}): {str(error).splitlines()[0] if str(error) else ''}",
            fix="check kind, layout, size and call in the TOML against what the module takes",
            code="encoder_shape",
        ) from error
    if expected not in (2, 3, 4, 5) or found.ndim != 2 or not found.shape[1]:
        raise DataError(
            f"encoder '{encoder.name}' gives an output with {expected} axes, expected a vector [N, C], "
            "tokens [N, P, C] or a map [N, C, H, W]",
            fix="name another output, or wrap the module",
            code="encoder_shape",
        )
    if not np.isfinite(found).all():
        raise DataError(
            f"encoder '{encoder.name}' gives values that are not finite for {int((~np.isfinite(found)).sum())} of "
            f"{found.size} numbers",
            fix="check its weights, and preprocessing mean and std",
            code="not_finite",
        )
    if not np.array_equal(found, again) or not np.ptp(found, axis=0).any():
        same = np.array_equal(found, again)
        what = "the same numbers for every clip" if same else "other numbers for the same clip again"
        raise DataError(
            f"encoder '{encoder.name}' gives {what}",
            fix="remove what is random in its forward; check that its weights are loaded",
            code="not_repeatable",
        )
    width = int(found.shape[1])
    if encoder.width and encoder.width != width:
        raise DataError(
            f"encoder '{encoder.name}' gives embeddings of {width} numbers, width = {encoder.width} was expected",
            fix=f"width = {width}, or check output, part and pooling",
            code="encoder_shape",
        )
    return width


def _first_output(net: nn.Module, record: EncoderRecord, clips: npt.NDArray[np.float32]) -> int:
    """Number of the output's axes; raises where tokens that are left out are all there are."""
    import torch

    clip = clips[:1] if record.layout == "channels-first" else clips[:1].swapaxes(1, 2)
    given = torch.from_numpy(np.ascontiguousarray(clip if record.kind == "video" else clip[:, 0]))
    with torch.no_grad():
        found: Any = chosen_output(net(given, **record.call), record)
    if not found.is_floating_point():
        raise DataError(
            f"the encoder's output is {str(found.dtype).removeprefix('torch.')}, expected floats",
            fix="name another output",
            code="encoder_shape",
        )
    if 3 <= found.ndim <= 5 and not positions(found, record).shape[1]:
        raise DataError(
            f"the encoder's output has no positions left after skip_tokens = {record.skip_tokens}",
            fix="leave out fewer",
            code="encoder_shape",
        )
    return int(found.ndim)


def _seeded_clips(encoder: Encoder) -> npt.NDArray[np.float32]:
    """float32 [2, 3, K, S, S]."""
    rule = encoder.preprocessing.rule()
    rgb = seeded_frames(_SEED, clips=2, frames=encoder.frames, size=rule.size)
    values = normalise_bytes(rgb.reshape(-1, *rgb.shape[2:]), rule)
    return np.ascontiguousarray(values.reshape(2, encoder.frames, *values.shape[1:]).swapaxes(1, 2))
