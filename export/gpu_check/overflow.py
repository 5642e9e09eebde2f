"""Range of the values in BLIP's image encoder, beside that of fp16: the measurement of an export, on its graph in fp32.

This needs no GPU. The claim is about the published weights: seeded ones say nothing about it, and are reported as such.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..graphs.export import write_graph
from ..graphs.spec import vision_spec
from ..networks.preprocessing import blip_frames
from ..precision.calibration import seeded_frames
from ..precision.overflow import FP16_MAX, fits_fp16, largest_magnitude
from ..weights.loading import open_blip
from ..weights.source import parse_source

CLIPS, FRAMES = 3, 2  # seeded moving shapes
_SEED = 20_261_130


def largest_activation(weights: str) -> dict[str, Any]:
    """The largest magnitude of a value inside graph ``vision`` on seeded frames, and its name; on the CPU.

    ``means_something``: the weights are not seeded. ``has_room``: an export would leave the graph fp16.
    """
    import onnx

    source = parse_source("blip", weights)
    model = open_blip(source).model
    size = int(model.config.vision_config.image_size)
    frames = seeded_frames(_SEED, clips=CLIPS, frames=FRAMES, size=size).reshape(-1, size, size, 3)
    with tempfile.TemporaryDirectory(prefix="flamest-overflow-") as folder:
        graph = write_graph(vision_spec(model, blip_frames(size)), Path(folder))
        largest, value = largest_magnitude(
            onnx.load(str(Path(folder, graph.file))), [{"pixels": frame[None]} for frame in frames]
        )
    return {
        "weights": weights,
        "means_something": source.kind in ("hub", "files", "zoo"),
        "largest": largest,
        "value": value,
        "limit": FP16_MAX,
        "has_room": fits_fp16(largest),
        "frames": len(frames),
    }
