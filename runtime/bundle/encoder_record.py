"""The manifest's record of an encoder of the exporter's own: all that decides what its graph computes, but its weights
(``Manifest.sources``) and its frames (``SpatioTemporal``).

A silo only shows it. ``flamest-export verify`` compares it with the encoder that it is given: no code is ever found,
let alone run, by what a manifest says (docs/decisions/045-any-frozen-encoder.md).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from .graph_records import Record, Text

EncoderKind = Literal["image", "video"]  # sees one frame at a time, or all of a clip
Layout = Literal["time-first", "channels-first"]  # [B, K, 3, S, S] or [B, 3, K, S, S]
Positions = Literal["mean", "first"]  # of a frame's or a clip's map: the mean over them, or the first token
OverTime = Literal["mean", "motion", "mean+motion"]
Argument = bool | int | float | Text
Arguments = Annotated[dict[Text, Argument], Meta(max_length=64)]


class EncoderRecord(Record, frozen=True):
    """Encoder of an image or a video, any PyTorch module."""

    source: Text  # "file encoder.py:make", "module package.module:make", "hub OWNER/MODEL", "timm NAME", "python CLASS"
    source_sha256: Text  # of the file that defines it; empty for a hub's or timm's, whose code is a package's
    arguments: Arguments  # of the function that makes the module
    call: Arguments  # named arguments of every call of the module, after the frames
    part: Text  # the part of the module that is called, "vision_model"; empty: all of it
    output: Text  # which of several outputs: a name, or a number; empty where there is one
    kind: EncoderKind
    layout: Layout  # of a video encoder's frames
    channels_last: bool  # of a map: [..., height, width, channels]
    skip_tokens: Annotated[int, Meta(ge=0, le=1024)]  # at the front, which are no positions: class, registers
    positions: Positions
    over_time: OverTime  # of an image encoder's frames
