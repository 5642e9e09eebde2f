"""Cost in TensorRT of the casts to fp32 around the softmax of ``vision``: they stand between attention's products.

Not run on hardware yet.
"""

from __future__ import annotations

from typing import Any

from ...runtime.backends.machine import gather_facts
from ...runtime.bundle.graph_records import EngineOptions, Precision
from ..graphs.spec import vision_spec
from ..networks.preprocessing import blip_frames
from ..precision.choice import BF16_MAJOR
from ..precision.half import half_spec
from ..weights.loading import open_blip
from ..weights.source import parse_source
from .engine_trials import time_spec

BATCHES = (1, 16)
REPEATS = 30


def compare_casts(weights: str, repeats: int = REPEATS) -> dict[str, Any]:
    """Milliseconds of ``vision`` in this GPU's half precision at each of ``BATCHES``, with the casts and without."""
    gpu = gather_facts().gpu
    precision: Precision = "bf16" if gpu is None or int(gpu.compute_capability.split(".")[0]) >= BF16_MAJOR else "fp16"
    model = open_blip(parse_source("blip", weights)).model
    spec = vision_spec(model, blip_frames(int(model.config.vision_config.image_size)))
    options = EngineOptions(max_batch=max(BATCHES))
    found: dict[str, Any] = {"precision": precision}
    for what, softmax_in_fp32 in (("with", True), ("without", False)):
        half = half_spec(spec, precision, precision, softmax_in_fp32=softmax_in_fp32)
        found[what] = time_spec(half, options, BATCHES, repeats)
    return found
