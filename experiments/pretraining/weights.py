"""What a training leaves behind: weights in half precision, the files beside them, and the report."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.files import write_atomic
from ...export.networks.small import SMALL_BLIP_CONFIG, WEIGHTS, weights_file
from ...export.weights.tokenizer import small_tokenizer
from ..miniworld.plan import class_captions

if TYPE_CHECKING:
    from torch import Tensor, nn

REPORT = "report.json"


def save_network(name: str, net: nn.Module, folder: Path = WEIGHTS) -> Path:
    """Write the network's tensors, floats as fp16, tied ones once; with BLIP and CLIP what belongs to them."""
    from safetensors.torch import save

    path = weights_file(name, folder)
    content = save(_once(net))
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
        "settings": dataclasses.asdict(settings),
        "seconds": round(seconds, 1),
        "held_out": {key: round(value, 4) for key, value in figures.items()},
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "versions": {package: version(package) for package in ("torch", "transformers", "av")},
    }
    write_atomic(path, (json.dumps(report, indent=2, sort_keys=True) + "\n").encode())


def _once(net: nn.Module) -> dict[str, Tensor]:
    import torch

    from ...base.errors import InvariantError

    seen: set[int] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in sorted(net.state_dict().items()):
        if name.endswith("position_ids") or (tensor.numel() and tensor.data_ptr() in seen):
            continue
        seen.add(tensor.data_ptr())
        half = tensor.to(torch.float16) if tensor.is_floating_point() else tensor
        if not bool(torch.isfinite(half).all()):
            raise InvariantError(f"'{name}' holds values that half precision cannot: the network is not written")
        kept[name] = half.contiguous().clone()
    return kept
