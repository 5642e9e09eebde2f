"""Training of one small network by name: settings, weights in half precision, and its entry in report.json."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import InvariantError
from ...base.files import write_atomic
from ...base.progress import Progress
from ...export.networks.small import SMALL_BLIP_CONFIG, WEIGHTS, weights_file
from ...export.weights.tokenizer import small_tokenizer
from ..miniworld.specs import class_captions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .clips import TrainingClips

TRAINED, HELD_OUT = 54, 6  # scenes
REPORT = "report.json"
# Steps per network; chosen for 2 cores, not tuned.
MOTION_STEPS = {"slow": 900, "i3d": 700, "resnet3d": 800}
# In bf16 the gradient of torchvision's 3 x 3 x 3 convolutions became NaN at the second step (torch 2.15, CPU);
# PyTorchVideo's I3D too has convolutions over both frames and pixels.
FULL_PRECISION = ("resnet3d", "i3d")


def training_settings(name: str, *, share: float = 1.0) -> tuple[Any, int]:
    """Settings of that network's training with its steps scaled by ``share``, and the number of steps."""
    if name == "blip":
        from .captioner import CaptionerSettings

        settings: Any = CaptionerSettings()
    elif name == "clip":
        from .clip import ClipSettings

        settings = ClipSettings()
    elif name == "videomae":
        from .videomae import VideoMaeSettings

        settings = VideoMaeSettings()
    else:
        from .motion import MotionSettings

        settings = MotionSettings(steps=MOTION_STEPS[name], half=name not in FULL_PRECISION)
    scaled = {
        field: max(1, round(getattr(settings, field) * share))
        for field in ("looking", "steps")
        if hasattr(settings, field)
    }
    return dataclasses.replace(settings, **scaled), sum(scaled.values())


def train_network(
    name: str,
    training: TrainingClips,
    held_out: TrainingClips,
    settings: Any,
    *,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train the network, write weights and report to ``folder``, and measure the written weights on ``held_out``."""
    from ...export.networks.small import load_small

    started = time.monotonic()
    if name == "blip":
        from .captioner import train_captioner

        net: Any = train_captioner(training, settings, progress=progress)
    elif name == "clip":
        from .clip import train_clip

        net = train_clip(training, settings, progress=progress)
    elif name == "videomae":
        from .videomae import train_videomae

        net = train_videomae(training, settings, progress=progress)
    else:
        from .motion import train_motion

        net = train_motion(name, training, settings, progress=progress)
    seconds = time.monotonic() - started
    save_network(name, net, folder)
    figures = measure(name, load_small(name, folder), held_out)
    add_to_report(name, seconds, settings, figures, folder)
    return figures


def measure(name: str, net: Any, clips: TrainingClips) -> dict[str, float]:
    """The network's own figures (shares of 1) on ``clips``."""
    if name == "blip":
        from .captioner import measure_captioner

        return measure_captioner(net, clips)
    if name == "clip":
        from .clip import measure_clip

        return measure_clip(net, clips)
    from .motion import measure_motion

    return measure_motion(name, net, clips)


def save_network(name: str, net: nn.Module, folder: Path = WEIGHTS) -> Path:
    """Write the network's tensors, floats as fp16 and tied ones once; for BLIP and CLIP also their other files."""
    from safetensors.torch import save

    path = weights_file(name, folder)
    content = save(_half_precision(net))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    if name == "blip":
        write_atomic(path.parent / "config.json", (json.dumps(SMALL_BLIP_CONFIG, indent=2) + "\n").encode())
        write_atomic(path.parent / "tokenizer.json", small_tokenizer())
    if name == "clip":
        write_atomic(folder / "clip-captions.json", (json.dumps(class_captions(), indent=2) + "\n").encode())
    return path


def add_to_report(name: str, seconds: float, settings: Any, figures: dict[str, Any], folder: Path = WEIGHTS) -> None:
    """Replace the network's entry: settings, wall seconds of the training, held-out figures, machine."""
    path = folder / REPORT
    report = json.loads(path.read_text()) if path.is_file() else {}
    report[name] = {
        "settings": {
            entry.metadata.get("key", entry.name): getattr(settings, entry.name)
            for entry in dataclasses.fields(settings)
        },
        "seconds": round(seconds, 1),
        "held_out": {key: round(value, 4) for key, value in figures.items()},
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "versions": {package: version(package) for package in ("torch", "transformers", "av")},
    }
    write_atomic(path, (json.dumps(report, indent=2, sort_keys=True) + "\n").encode())


def _half_precision(net: nn.Module) -> dict[str, Tensor]:
    """The tensors, floats as fp16, shared storage once. Raises InvariantError on values that fp16 cannot hold."""
    import torch

    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in sorted(net.state_dict().items()):
        if name.endswith("position_ids") or (tensor.numel() and tensor.data_ptr() in seen):
            continue
        seen.add(tensor.data_ptr())
        half = tensor.to(torch.float16) if tensor.is_floating_point() else tensor
        if not bool(torch.isfinite(half).all()):
            raise InvariantError(f"'{name}' holds values that fp16 cannot represent: the network is not written")
        kept[name] = half.contiguous().clone()
    return kept
