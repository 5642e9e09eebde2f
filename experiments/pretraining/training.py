"""One network's training from footage to files: settings, weights, figures of what was written."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.progress import Progress

if TYPE_CHECKING:
    from .clips import Footage

TRAINED, HELD_OUT = 54, 6  # scenes
# Steps where a network's differ from its settings' own; chosen for 2 cores, not searched.
MOTION_STEPS = {"slow": 900, "i3d": 700, "resnet3d": 800}
# In bf16 the gradient of torchvision's 3 x 3 x 3 convolutions became NaN at the second step (torch 2.15, CPU);
# PyTorchVideo's I3D has convolutions that span frames and pixels too.
FULL_PRECISION = ("resnet3d", "i3d")


def plan_training(name: str, *, share: float = 1.0) -> tuple[Any, int]:
    """The settings of that network's training, its steps scaled by ``share``; and how many steps these are."""
    if name == "blip":
        from .captioner import CaptionerSettings

        settings: Any = CaptionerSettings()
    elif name == "clip":
        from .clip import ContrastSettings

        settings = ContrastSettings()
    elif name == "videomae":
        from .videomae import TubeSettings

        settings = TubeSettings()
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
    name: str, seen: Footage, unseen: Footage, settings: Any, *, folder: Path, progress: Progress | None = None
) -> dict[str, float]:
    """Train on ``seen``, write weights and report to ``folder``, and measure what was written on ``unseen``."""
    from ...export.networks.small import load_small
    from .weights import add_to_report, save_network

    started = time.monotonic()
    if name == "blip":
        from .captioner import train_captioner

        net: Any = train_captioner(seen, settings, progress=progress)
    elif name == "clip":
        from .clip import train_clip

        net = train_clip(seen, settings, progress=progress)
    elif name == "videomae":
        from .videomae import train_tubes

        net = train_tubes(seen, settings, progress=progress)
    else:
        from .motion import train_motion

        net = train_motion(name, seen, settings, progress=progress)
    seconds = time.monotonic() - started
    save_network(name, net, folder)
    figures = measure(name, load_small(name, folder), unseen)
    add_to_report(name, seconds, settings, figures, folder)
    return figures


def measure(name: str, net: Any, footage: Footage) -> dict[str, float]:
    """The network's own figures (shares of 1) on ``footage``."""
    if name == "blip":
        from .captioner import measure_captioner

        return measure_captioner(net, footage)
    if name == "clip":
        from .clip import measure_clip

        return measure_clip(net, footage)
    from .motion import measure_motion

    return measure_motion(name, net, footage)
