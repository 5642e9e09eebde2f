"""Where weights come from: a hub id, a local folder, a checkpoint file, the mini-world, or a seed.

Every network takes ``random:full``, ``random:tiny`` (a seed may follow: ``random:tiny:7``),
``miniworld`` (the small network that the project trained and carries) and ``published``; and its own:

    --blip, --clip, --videomae     OWNER/MODEL[@REVISION] | FOLDER | FOLDER/FILE.safetensors
    --slow, --i3d, --resnet3d      slow_r50, i3d_r50, r3d_18 | FILE.safetensors | FILE.pth | FILE.pyth
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, UsageError
from ...runtime.bundle.manifest import FramePreprocessing, Source
from ..networks.architectures import BLIP_BASE_CONFIG, BLIP_TINY_CONFIG, VideoForm, build_blip, parameter_counts
from ..networks.clip import CLIP_BASE_CONFIG, CLIP_TINY_CONFIG, build_clip, read_captions
from ..networks.preprocessing import clip_frames, small_clip_frames, small_video_frames
from ..networks.video import VIDEO_NETWORKS, VideoNetwork
from .checkpoints import BATCH_COUNT
from .hub import fetch_folder, is_hub_id
from .releases import MINIWORLD, licence_of
from .tokenizer import read_tokenizer, synthetic_tokenizer
from .vocabulary import CLS, SEP, spoken_phrases

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration

PUBLISHED = {
    "blip": "Salesforce/blip-image-captioning-base",
    "clip": "openai/clip-vit-base-patch32",
    **{name: network.published for name, network in VIDEO_NETWORKS.items()},
}
_SMALL_REVISION = "trained by this project on its mini-world (flamest.experiments.pretraining)"
_RANDOM = re.compile(r"random:(?P<form>full|tiny)(:(?P<seed>\d{1,9}))?")
_RANDOM_CAPTIONS = 8  # made up for a random CLIP


@dataclass(frozen=True, eq=False)
class BlipSource:
    """A loaded captioner, its tokenizer.json, and where they came from."""

    model: BlipForConditionalGeneration
    tokenizer: bytes
    source: Source


@dataclass(frozen=True, eq=False)
class ClipSource:
    """A loaded CLIP, its tokenizer.json, the captions that come with it, and where they came from."""

    model: Any  # transformers.CLIPModel
    tokenizer: bytes
    captions: tuple[str, ...]  # none with published weights: they are written per data set
    preprocessing: FramePreprocessing
    source: Source


@dataclass(frozen=True, eq=False)
class VideoSource:
    """A loaded spatio-temporal network and where it came from."""

    network: VideoNetwork
    net: nn.Module
    form: VideoForm
    preprocessing: FramePreprocessing  # as its weights were trained
    source: Source


def is_self_contained(name: str) -> bool:
    """Can this source be loaded again from its name alone, with no file and no network?"""
    return _RANDOM.fullmatch(name) is not None or name == MINIWORLD


def open_blip(name: str) -> BlipSource:
    """Load the captioner that ``name`` stands for.

    Raises UsageError for a name of no known form, UnreachableError without network, DataError when
    files are missing, damaged, or not those of the configuration (``untrained``: the mini-world's).
    """
    seeded = _RANDOM.fullmatch(name)
    if seeded:
        from .random_transformers import randomise_blip

        model = build_blip(BLIP_BASE_CONFIG if seeded["form"] == "full" else BLIP_TINY_CONFIG)
        randomise_blip(model, seed=int(seeded["seed"] or 0))
        return BlipSource(model, synthetic_tokenizer(), _describe(name, f"seed {seeded['seed'] or 0}", model, "none"))
    if name == MINIWORLD:
        from ..networks.small import BLIP_FOLDER, load_small

        small: Any = load_small("blip")
        tokenizer = read_tokenizer(BLIP_FOLDER, vocabulary_size=small.config.text_config.vocab_size)
        return BlipSource(small, tokenizer, _describe(name, _SMALL_REVISION, small, licence_of(name)))
    from .blip import FILES_TO_BRING, load_blip

    path, revision = _folder("blip", name, FILES_TO_BRING)
    model = load_blip(path)
    tokenizer = read_tokenizer(_inside(path), vocabulary_size=model.config.text_config.vocab_size)
    return BlipSource(model, tokenizer, _describe(_short(name), revision, model, licence_of(name)))


def open_clip(name: str) -> ClipSource:
    """Load the CLIP that ``name`` stands for; errors as for ``open_blip``."""
    seeded = _RANDOM.fullmatch(name)
    if seeded:
        from .random_transformers import randomise_clip

        config, seed = CLIP_BASE_CONFIG if seeded["form"] == "full" else CLIP_TINY_CONFIG, int(seeded["seed"] or 0)
        # The made-up tokenizer's start and end in place of those of CLIP's.
        model = build_clip(
            {**config, "text_config": {**config["text_config"], "bos_token_id": CLS, "eos_token_id": SEP}}
        )
        randomise_clip(model, seed=seed)
        captions = spoken_phrases(seed, _RANDOM_CAPTIONS)
        frames = clip_frames(config["vision_config"]["image_size"])
        source = _describe(name, f"seed {seed}", model, "none")
        return ClipSource(model, synthetic_tokenizer(), captions, frames, source)
    if name == MINIWORLD:
        from ..networks.small import BLIP_FOLDER, CLIP_CAPTIONS, load_small

        small: Any = load_small("clip")
        if not CLIP_CAPTIONS.is_file():
            raise DataError(f"the mini-world's captions are missing: {CLIP_CAPTIONS.name}", code="untrained")
        tokenizer = read_tokenizer(BLIP_FOLDER, vocabulary_size=small.config.text_config.vocab_size)
        source = _describe(name, _SMALL_REVISION, small, licence_of(name))
        frames = small_clip_frames(small.config.vision_config.image_size)
        return ClipSource(small, tokenizer, read_captions(CLIP_CAPTIONS), frames, source)
    from .transformers import CLIP_FILES, load_clip

    path, revision = _folder("clip", name, CLIP_FILES)
    model, tokenizer_file = load_clip(path), _inside(path) / "tokenizer.json"
    try:
        tokenizer = tokenizer_file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {tokenizer_file}: {error.strerror}", fix=f"put {CLIP_FILES} of the model into one folder"
        ) from error
    source = _describe(_short(name), revision, model, licence_of(name))
    return ClipSource(model, tokenizer, (), clip_frames(model.config.vision_config.image_size), source)


def open_video(network_name: str, name: str) -> VideoSource:
    """Load the network ``network_name`` of VIDEO_NETWORKS from the source ``name``; errors as for ``open_blip``."""
    network = VIDEO_NETWORKS[network_name]
    seeded = _RANDOM.fullmatch(name)
    if seeded:
        net, form = network.full() if seeded["form"] == "full" else network.tiny()
        network.randomise(net, form, seed=int(seeded["seed"] or 0))
        source = _describe(name, f"seed {seeded['seed'] or 0}", net, "none")
        return VideoSource(network, net, form, network.preprocessing(form.crop), source)
    if name == MINIWORLD:
        from ..networks.small import SMALL_FORMS, load_small

        net, form = load_small(network_name), VideoForm(**dataclasses.asdict(SMALL_FORMS[network_name]))
        source = _describe(name, _SMALL_REVISION, net, licence_of(name))
        return VideoSource(network, net, form, small_video_frames(form.crop), source)
    if Path(name).exists():
        net, form = network.load(Path(name))
        revision = "local files" if Path(name).is_dir() else "local file"
    elif name == network.published or (is_hub_id(network.published) and is_hub_id(name)):
        net, form, revision = network.fetch(name)
    else:
        raise UsageError(
            f"--{network_name} {name}: no such file; expected {network.published}, {network.files}, {_EVERYWHERE}",
            fix=f"give the path of a checkpoint of {network.published} with --{network_name}",
        )
    source = _describe(_short(name), revision, net, licence_of(name))
    return VideoSource(network, net, form, network.preprocessing(form.crop), source)


_EVERYWHERE = "miniworld, random:full or random:tiny"


def _folder(network: str, name: str, to_bring: str) -> tuple[Path, str]:
    """Local files, or those of a hub id: (folder or weights file, revision)."""
    if Path(name).exists():
        return Path(name), "local files"
    if not is_hub_id(name):
        raise UsageError(
            f"--{network} {name}: no such folder; expected a hub id, a folder, {_EVERYWHERE}",
            fix=f"flamest-export --backend onnx --{network} {PUBLISHED[network]} --out DIR",
        )
    return fetch_folder(name, option=f"--{network}", to_bring=to_bring)


def _inside(path: Path) -> Path:
    return path if path.is_dir() else path.parent


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
