"""Networks with their weights, loaded from a WeightSource, and the manifest's record of the source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, StorageError
from ...base.files import read_regular
from ...runtime.bundle.manifest import FramePreprocessing, Source
from ..networks.blip import BLIP_BASE_CONFIG, BLIP_TINY_CONFIG, build_blip
from ..networks.clip import CLIP_BASE_CONFIG, CLIP_TINY_CONFIG, build_clip, read_captions
from ..networks.preprocessing import clip_frames, small_clip_frames, small_video_frames
from ..networks.reference import VideoForm, VideoNetwork, parameter_counts
from ..networks.small import BLIP_FOLDER, CLIP_CAPTIONS, SMALL_FORMS, load_small
from .checkpoints import BATCH_COUNT
from .hub import local_or_hub
from .hub_folder import BLIP_FILES, CLIP_FILES, load_blip, load_clip
from .random_transformers import randomise_blip, randomise_clip
from .source import WeightSource
from .tokenizer import MAX_TOKENIZER, read_tokenizer, synthetic_tokenizer
from .video import VIDEO_WEIGHTS, load_video, with_file_hash
from .vocabulary import CLS, SEP, spoken_phrases

if TYPE_CHECKING:
    from torch import nn
    from transformers import BlipForConditionalGeneration

_SMALL_REVISION = "trained by this project on its mini-world (flamest.experiments.pretraining)"
_RANDOM_CAPTIONS = 8  # made up for a random CLIP


@dataclass(frozen=True, eq=False)
class LoadedBlip:
    """A captioner and its tokenizer.json."""

    model: BlipForConditionalGeneration
    tokenizer: bytes
    source: Source


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """A CLIP, its tokenizer.json and the captions that come with it."""

    model: Any  # transformers.CLIPModel
    tokenizer: bytes
    captions: tuple[str, ...]  # none with published weights: they are written per data set
    preprocessing: FramePreprocessing
    source: Source


@dataclass(frozen=True, eq=False)
class LoadedVideo:
    """A spatio-temporal network."""

    network: VideoNetwork
    net: nn.Module
    form: VideoForm
    preprocessing: FramePreprocessing  # as its weights were trained
    source: Source


def open_blip(source: WeightSource) -> LoadedBlip:
    """Load the captioner of ``source``.

    Raises UnreachableError without network, DataError when files are missing, damaged, or not those of
    the configuration (``untrained``: the mini-world's).
    """
    model: Any
    if source.kind == "random":
        model = build_blip(BLIP_TINY_CONFIG if source.tiny else BLIP_BASE_CONFIG)
        randomise_blip(model, seed=source.seed)
        return LoadedBlip(model, synthetic_tokenizer(), _describe(source, _seeded(source), model))
    if source.kind == "miniworld":
        model, folder, revision = load_small("blip"), BLIP_FOLDER, _SMALL_REVISION
    else:
        path, revision = local_or_hub(source, to_bring=BLIP_FILES)
        (model, sha256), folder = load_blip(path, source), path if path.is_dir() else path.parent
        revision = with_file_hash(source, revision, sha256)
    tokenizer = read_tokenizer(folder, vocabulary_size=model.config.text_config.vocab_size)
    return LoadedBlip(model, tokenizer, _describe(source, revision, model))


def open_clip(source: WeightSource) -> LoadedClip:
    """Load the CLIP of ``source``; raises as ``open_blip``."""
    if source.kind == "random":
        return _random_clip(source)
    if source.kind == "miniworld":
        return _small_clip(source)
    path, revision = local_or_hub(source, to_bring=CLIP_FILES)
    model, sha256 = load_clip(path, source)
    revision = with_file_hash(source, revision, sha256)
    tokenizer_file = (path if path.is_dir() else path.parent) / "tokenizer.json"
    try:
        tokenizer = read_regular(tokenizer_file, largest=MAX_TOKENIZER)
    except StorageError as error:
        raise DataError(error.message, fix=f"put {CLIP_FILES} of the model into one folder") from error
    frames = clip_frames(model.config.vision_config.image_size)
    return LoadedClip(model, tokenizer, (), frames, _describe(source, revision, model))


def _random_clip(source: WeightSource) -> LoadedClip:
    config = CLIP_TINY_CONFIG if source.tiny else CLIP_BASE_CONFIG
    # The made-up tokenizer's start and end in place of those of CLIP's.
    model = build_clip({**config, "text_config": {**config["text_config"], "bos_token_id": CLS, "eos_token_id": SEP}})
    randomise_clip(model, seed=source.seed)
    captions = spoken_phrases(source.seed, _RANDOM_CAPTIONS)
    frames = clip_frames(config["vision_config"]["image_size"])
    return LoadedClip(model, synthetic_tokenizer(), captions, frames, _describe(source, _seeded(source), model))


def _small_clip(source: WeightSource) -> LoadedClip:
    model: Any = load_small("clip")
    if not CLIP_CAPTIONS.is_file():
        raise DataError(
            f"the mini-world's captions are missing: {CLIP_CAPTIONS.name}",
            fix="install the package again: pip install --force-reinstall flamest",
            code="untrained",
        )
    tokenizer = read_tokenizer(BLIP_FOLDER, vocabulary_size=model.config.text_config.vocab_size)
    frames = small_clip_frames(model.config.vision_config.image_size)
    captions = read_captions(CLIP_CAPTIONS)
    return LoadedClip(model, tokenizer, captions, frames, _describe(source, _SMALL_REVISION, model))


def open_video(source: WeightSource) -> LoadedVideo:
    """Load the spatio-temporal network of ``source``; raises as ``open_blip``."""
    weights = VIDEO_WEIGHTS[source.network]
    network = weights.network
    frames = network.preprocessing
    if source.kind == "random":
        net, form = network.tiny() if source.tiny else network.full()
        weights.randomise(net, form, seed=source.seed)
        revision = _seeded(source)
    elif source.kind == "miniworld":
        net, form, revision = load_small(source.network), SMALL_FORMS[source.network], _SMALL_REVISION
        frames = small_video_frames
    else:
        net, form, revision = load_video(weights, source)
    return LoadedVideo(network, net, form, frames(form.crop), _describe(source, revision, net))


def _seeded(source: WeightSource) -> str:
    return f"seed {source.seed}"


def _describe(source: WeightSource, revision: str, model: Any) -> Source:
    return describe_weights(model, name=source.name, revision=revision, licence=source.licence)


def describe_weights(model: Any, *, name: str, revision: str, licence: str) -> Source:
    """The manifest's record of a network's weights, with their hash and parameter counts."""
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
            raise DataError(
                f"weights '{name}' hold values that are not finite", fix="download or train the weights again"
            )
        array = tensor.detach().contiguous().numpy()
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(memoryview(array).cast("B"))
    return digest.hexdigest()
