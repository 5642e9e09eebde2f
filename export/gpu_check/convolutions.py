"""Slow as convolutions of single frames, the form that is exported, and as three-dimensional ones, in TensorRT.

Not run on hardware yet.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ...runtime.bundle.graph_records import EngineOptions
from ..graphs.spec import cnn_spec
from ..networks.slow_i3d import pooled_module
from ..weights.loading import open_video
from ..weights.source import parse_source
from .engine_trials import time_spec

BATCHES = (1, 8)
REPEATS = 30
TF32 = EngineOptions(tf32=True)


def compare_forms(weights: str, repeats: int = REPEATS) -> dict[str, Any]:
    """Milliseconds of both forms in fp32 with TF32 at each of ``BATCHES``, and the seconds of their builds."""
    video = open_video(parse_source("slow", weights))
    flat = cnn_spec(video.network, video.net, video.form, video.preprocessing)
    deep = dataclasses.replace(flat, module=pooled_module(video.net))
    return {
        "frame_by_frame": time_spec(flat, TF32, BATCHES, repeats),
        "three_dimensional": time_spec(deep, TF32, BATCHES, repeats),
    }
