"""Where weights come from: a hub id, a local folder, a checkpoint file, or a seed.

    --blip  OWNER/MODEL[@REVISION] | FOLDER | FOLDER/FILE.safetensors | random:full | random:tiny
    --slow  slow_r50 | FILE.safetensors | FILE.pth | random:full | random:tiny

A seed may follow: ``random:tiny:7``.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import DataError, UsageError
from ..runtime.manifest import Source
from .architectures import (
    BLIP_BASE_CONFIG,
    BLIP_TINY_CONFIG,
    SLOW_R50_FORM,
    SLOW_TINY_FORM,
    SlowForm,
    build_blip,
    build_slow_r50,
    build_slow_tiny,
    parameter_counts,
)
from .checkpoints import BATCH_COUNT
from .tokenizer import read_tokenizer, synthetic_tokenizer

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration

DEFAULT_BLIP = "Salesforce/blip-image-captioning-base"
DEFAULT_SLOW = "slow_r50"

_RANDOM = re.compile(r"random:(?P<form>full|tiny)(:(?P<seed>\d{1,9}))?")
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

_LICENCES = {
    DEFAULT_BLIP: "BSD-3-Clause (model card)",
    DEFAULT_SLOW: "Apache-2.0 (PyTorchVideo's repository; it states no separate licence for the weights)",
}
_LICENCE_UNKNOWN = "not known to the exporter: ask whoever gave you the weights"


@dataclass(frozen=True, eq=False)
class BlipSource:
    """A loaded captioner, its tokenizer.json, and where they came from."""

    model: BlipForConditionalGeneration
    tokenizer: bytes
    source: Source


@dataclass(frozen=True, eq=False)
class SlowSource:
    """A loaded Slow network and where it came from."""

    net: nn.Module
    form: SlowForm
    source: Source


def is_random(name: str) -> bool:
    """Can this source be loaded again from its name alone, with no file and no network?"""
    return _RANDOM.fullmatch(name) is not None


def is_hub_id(name: str) -> bool:
    """Does ``name`` have the form of a hub id, OWNER/MODEL, with or without @REVISION?"""
    return _HUB_ID.fullmatch(name) is not None


def open_blip(name: str) -> BlipSource:
    """Load the captioner that ``name`` stands for.

    Raises UsageError for a name of no known form, UnreachableError without network, DataError when
    files are missing, damaged, or not those of the configuration.
    """
    seeded = _RANDOM.fullmatch(name)
    if seeded:
        from .random_weights import randomise_blip

        model = build_blip(BLIP_BASE_CONFIG if seeded["form"] == "full" else BLIP_TINY_CONFIG)
        randomise_blip(model, seed=int(seeded["seed"] or 0))
        return BlipSource(model, synthetic_tokenizer(), _describe(name, f"seed {seeded['seed'] or 0}", model, "none"))
    from .blip_checkpoint import load_blip

    path, revision = Path(name), "local files"
    if not path.exists():
        path, revision = _from_hub(name)
    model = load_blip(path)
    folder = path if path.is_dir() else path.parent
    tokenizer = read_tokenizer(folder, vocabulary_size=model.config.text_config.vocab_size)
    hub = _HUB_ID.fullmatch(name)
    licence = _LICENCES.get(hub["repository"] if hub else name, _LICENCE_UNKNOWN)
    return BlipSource(model, tokenizer, _describe(_short(name), revision, model, licence))


def open_slow(name: str) -> SlowSource:
    """Load the Slow network that ``name`` stands for; errors as for ``open_blip``."""
    seeded = _RANDOM.fullmatch(name)
    if seeded:
        from .random_weights import randomise_slow

        full = seeded["form"] == "full"
        net, form = (build_slow_r50(), SLOW_R50_FORM) if full else (build_slow_tiny(), SLOW_TINY_FORM)
        randomise_slow(net, crop=form.crop, seed=int(seeded["seed"] or 0))
        return SlowSource(net, form, _describe(name, f"seed {seeded['seed'] or 0}", net, "none"))
    from .slow_checkpoint import download_slow_r50, load_slow

    if name == DEFAULT_SLOW:
        net = download_slow_r50()
        revision = "SLOW_8x8_R50.pyth of the PyTorchVideo model zoo"
    elif Path(name).is_file():
        net, revision = load_slow(Path(name)), "local file"
    else:
        raise UsageError(
            f"--slow {name}: no such file; expected slow_r50, a checkpoint file, random:full or random:tiny",
            fix="give the path of a SLOW_8x8_R50 checkpoint (.safetensors, .pth or .pyth)",
        )
    licence = _LICENCES.get(name, _LICENCE_UNKNOWN)
    return SlowSource(net, SLOW_R50_FORM, _describe(_short(name), revision, net, licence))


def _from_hub(name: str) -> tuple[Path, str]:
    from .hub import fetch_blip

    hub = _HUB_ID.fullmatch(name)
    if hub is None or name.startswith((".", "/")):
        raise UsageError(
            f"--blip {name}: no such folder; expected a hub id, a folder, random:full or random:tiny",
            fix=f"flamest-export --backend onnx --blip {DEFAULT_BLIP} --out DIR",
        )
    return fetch_blip(hub["repository"], hub["revision"])


def _short(name: str) -> str:
    """A hub id as it is; of a path only its last part: a manifest tells nothing of the exporting machine."""
    return Path(name).name if Path(name).exists() else name


def _describe(name: str, revision: str, model: Any, licence: str) -> Source:
    counted, stored = parameter_counts(model)
    return Source(
        name=name,
        revision=revision,
        weights_sha256=hash_weights(model),
        parameters=counted,
        parameters_tied=stored,
        licence=licence,
    )


def hash_weights(model: Any) -> str:
    """SHA-256 over name, dtype, shape and values of all tensors in name order, a tied one once.

    Batch counts of norms are left out: no output depends on them. Raises DataError when a value is not finite.
    """
    import torch

    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.data_ptr() in seen or name.endswith(BATCH_COUNT):
            continue
        seen.add(tensor.data_ptr())
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"weights '{name}' hold values that are not finite")
        array = tensor.detach().contiguous().numpy()
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(memoryview(array).cast("B"))
    return digest.hexdigest()
