"""Does BLIP's image encoder leave the range of fp16? Its largest activations in fp32, layer by layer.

This needs no GPU. The claim is about the published weights: seeded ones say nothing about it, and are reported as such.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from ..networks.preprocessing import blip_frames
from ..precision.calibration import calibration_clips
from ..weights.loading import open_blip
from ..weights.source import WeightSource, parse_source

LARGEST_FP16 = 65504.0
CLIPS, FRAMES = 3, 2  # seeded moving shapes
_SEED = 20_261_130


def largest_activations(weights: str) -> dict[str, Any]:
    """The largest absolute activation of each layer on seeded frames, in fp32 on the CPU.

    ``means_something``: the weights are not seeded. Also how many values of the result are not finite when the network
    itself computes in fp16, where PyTorch can.
    """
    import torch

    source = parse_source("blip", weights)
    vision = open_blip(source).model.vision_model.eval().float()
    size = int(vision.config.image_size)
    pixels = torch.from_numpy(_frames(size))
    largest: dict[str, float] = {}

    def watch(name: str) -> Any:
        def note(module: Any, inputs: Any, output: Any) -> None:
            tensors = [output] if torch.is_tensor(output) else [each for each in output if torch.is_tensor(each)]
            for tensor in tensors:
                largest[name] = max(largest.get(name, 0.0), float(tensor.abs().max()))

        return note

    hooks = [module.register_forward_hook(watch(name)) for name, module in vision.named_modules() if name]
    with torch.no_grad():
        vision(pixels)
    for hook in hooks:
        hook.remove()
    top = sorted(largest.items(), key=lambda each: -each[1])[:5]
    return {
        "weights": weights,
        "means_something": _means_something(source),
        "largest": top[0][1],
        "limit": LARGEST_FP16,
        "layers": [{"layer": name, "largest": value} for name, value in top],
        "not_finite_in_fp16": _not_finite(vision, pixels),
        "frames": len(pixels),
    }


def _means_something(source: WeightSource) -> bool:
    return source.kind in ("hub", "files", "zoo")


def _frames(size: int) -> Any:
    rule = blip_frames(size)
    clips = calibration_clips(_SEED, clips=CLIPS, frames=FRAMES, size=size, mean=0.0, std=1.0)
    frames = np.concatenate([clip.transpose(1, 0, 2, 3) for clip in clips]).astype(np.float32)
    mean, std = (np.asarray(each, np.float32).reshape(-1, 1, 1) for each in (rule.mean, rule.std))
    return np.ascontiguousarray((frames - mean) / std, dtype=np.float32)


def _not_finite(vision: Any, pixels: Any) -> int | None:
    """Values of the result that are not finite in fp16; None where PyTorch cannot compute it in fp16 here."""
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    with contextlib.suppress(RuntimeError), torch.no_grad():
        result = vision.to(place, torch.float16)(pixels.to(place, torch.float16)).last_hidden_state
        return int((~torch.isfinite(result)).sum())
    return None
