"""An encoder's module as graph ``cnn``: frames of a clip in, one vector out; and the same in NumPy, which proves it.

Notation: B clips, K frames, P positions (of a map or of tokens), C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError
from ...runtime.bundle.encoder_record import EncoderRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

Frames = npt.NDArray[np.float32]  # [B, 3, K, S, S]
Wide = npt.NDArray[np.float64]


def pooled_module(net: nn.Module, record: EncoderRecord, frames: int) -> nn.Module:
    """frames float32 [B, K, 3, S, S] -> embedding float32 [B, C], or [B, 2 C] with the mean and the motion.

    ``net``: the part that is called.
    """
    import torch
    from torch import nn

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = net

        def forward(self, clips: Tensor) -> Tensor:
            if record.kind == "video":
                clips = clips.transpose(1, 2) if record.layout == "channels-first" else clips
                return positions(chosen_output(self.encoder(clips, **record.call), record), record).mean(1)
            each = clips.flatten(0, 1)
            found = positions(chosen_output(self.encoder(each, **record.call), record), record)
            found = found.reshape(-1, frames, found.shape[1], found.shape[2])
            wanted = record.over_time
            mean = [] if wanted == "motion" else [found.mean(2).mean(1)]
            motion = [] if wanted == "mean" else [(found[:, 1:] - found[:, :-1]).abs().mean(2).mean(1)]
            return torch.cat([*mean, *motion], dim=1)

    return Pooled().eval()


def reference_embedding(net: nn.Module, record: EncoderRecord, clips: Frames) -> npt.NDArray[np.float32]:
    """The embedding [B, …] by the module itself, one clip or frame at a time, pooled in float64 by NumPy."""
    import torch

    def outputs(given: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            found = chosen_output(net(torch.from_numpy(np.ascontiguousarray(given[None])), **record.call), record)
        return _positions_of(found.numpy().astype(np.float64)[0], record)

    with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are reported where they are used
        return _pooled_rows(clips, outputs, record)


def _pooled_rows(clips: Frames, outputs: Callable[[Frames], Wide], record: EncoderRecord) -> npt.NDArray[np.float32]:
    rows = []
    for clip in clips:  # [3, K, S, S]
        if record.kind == "video":
            rows.append(outputs(clip if record.layout == "channels-first" else clip.swapaxes(0, 1)).mean(0))
            continue
        found = np.stack([outputs(clip[:, index]) for index in range(clip.shape[1])])  # [K, P, C]
        motion = np.abs(np.diff(found, axis=0)).mean(axis=(0, 1))
        parts = {"mean": [found.mean(axis=(0, 1))], "motion": [motion]}
        rows.append(np.concatenate([row for part in record.over_time.split("+") for row in parts[part]]))
    return np.asarray(rows, dtype=np.float32)


def chosen_output(found: Any, record: EncoderRecord) -> Any:
    """The tensor among a module's outputs that the record names; raises DataError ``encoder_output``."""
    import torch

    name = record.output
    if isinstance(found, torch.Tensor):
        if name:
            raise _output_error(f"output = '{name}', but it returns one tensor", "leave output out")
        return found
    if isinstance(found, dict):  # transformers' outputs are dicts too
        chosen, known = found.get(name), [key for key, value in found.items() if isinstance(value, torch.Tensor)]
    elif isinstance(found, tuple | list):
        known = [str(number) for number, value in enumerate(found) if isinstance(value, torch.Tensor)]
        chosen = found[int(name)] if name in known else None
    else:
        kind = type(found).__name__
        raise _output_error(f"it returns {kind}, expected a tensor", "wrap it in a module that returns a tensor")
    if not isinstance(chosen, torch.Tensor):
        named = f"has no tensor '{name}'" if name else "has several outputs"
        raise _output_error(f"it {named}: {', '.join(known)}", f"output = '{known[0] if known else 'NAME'}', say")
    return chosen


def positions(found: Tensor, record: EncoderRecord) -> Tensor:
    """A module's output as [N, P, C]: P = 1 for vectors."""
    if found.ndim == 2:
        return found[:, None]
    if found.ndim > 3:
        found = found.flatten(1, -2) if record.channels_last else found.flatten(2).transpose(1, 2)
    found = found[:, record.skip_tokens :]
    return found[:, :1] if record.positions == "first" else found


def _positions_of(found: npt.NDArray[np.float64], record: EncoderRecord) -> npt.NDArray[np.float64]:
    """The same of one row: [P, C]."""
    if found.ndim == 1:
        return found[None]
    if found.ndim > 2:
        moved = found if record.channels_last else np.moveaxis(found, 0, -1)
        found = moved.reshape(-1, moved.shape[-1])
    found = found[record.skip_tokens :]
    return found[:1] if record.positions == "first" else found


def _output_error(problem: str, fix: str) -> DataError:
    return DataError(
        f"the encoder's module: {problem}", fix=f"{fix} (docs/guides/own-encoder.md)", code="encoder_output"
    )
