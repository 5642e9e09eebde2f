"""The four spatio-temporal networks of Table 1, each as one record of what the exporter does with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.bundle.manifest import FramePreprocessing, Network
from ..weights import random_convolutions, random_transformers
from ..weights.video import ZooEntry, download_video, load_video
from . import preprocessing, resnet3d, videomae
from .architectures import (
    I3D_R50_FORM,
    I3D_TINY_FORM,
    SLOW_R50_FORM,
    SLOW_TINY_FORM,
    VideoForm,
    build_i3d_r50,
    build_i3d_tiny,
    build_slow_r50,
    build_slow_tiny,
    zoo_url,
)
from .slow import before_proj, pooled_module, slow_module

if TYPE_CHECKING:
    from torch import nn

Frames = npt.NDArray[np.float32]  # [B, 3, K, S, S]


@dataclass(frozen=True, eq=False)
class VideoNetwork:
    """One network: how it is built, filled, cut for export, and what proves the export."""

    name: Network
    published: str  # the source word of the published weights
    files: str  # what a source may be, for people
    full: Callable[[], tuple[nn.Module, VideoForm]]  # weights not set
    tiny: Callable[[], tuple[nn.Module, VideoForm]]
    randomise: Callable[..., None]  # (net, form, *, seed)
    load: Callable[[Path], tuple[nn.Module, VideoForm]]  # from a local file or folder
    fetch: Callable[[str], tuple[nn.Module, VideoForm, str]]  # from the publisher, by source word: with the revision
    module: Callable[[nn.Module, int], nn.Module]  # what is exported, by the network and a clip's frames
    reference: Callable[[nn.Module, Frames], npt.NDArray[np.float32]]  # the same numbers by the library's own forward
    preprocessing: Callable[[int], FramePreprocessing]  # by the crop's pixels
    pooling: str  # for people


def _zoo(
    entry: ZooEntry, build: Callable[[], nn.Module], url: Callable[[], str], form: VideoForm
) -> dict[str, Callable[..., Any]]:
    """The three ways to a network whose weights are one file of a model zoo."""
    what = f"{entry.file} ({entry.name}, 400 classes)"
    return {
        "full": lambda: (build(), form),
        "load": lambda path: (load_video(path, build(), what=what), form),
        "fetch": lambda name: (download_video(entry, url(), build()), form, f"{entry.file} of {entry.zoo}"),
    }


def _videomae(config: dict[str, Any]) -> tuple[nn.Module, VideoForm]:
    net: Any = videomae.build_videomae(config)
    return net, videomae.videomae_form(net.config)


def _load_videomae(path: Path) -> tuple[nn.Module, VideoForm]:
    from ..weights.transformers import load_videomae

    net: Any = load_videomae(path)
    return net, videomae.videomae_form(net.config)


def _fetch_videomae(name: str) -> tuple[nn.Module, VideoForm, str]:
    from ..weights.hub import fetch_folder
    from ..weights.transformers import VIDEOMAE_FILES

    folder, revision = fetch_folder(name, option="--videomae", to_bring=VIDEOMAE_FILES)
    return (*_load_videomae(folder), revision)


_ZOO = "PyTorchVideo's model zoo"
_FILE = "FILE.safetensors, FILE.pth, FILE.pyth"
_WINDOWS = "mean over the positions that the head pools to"

VIDEO_NETWORKS: Mapping[str, VideoNetwork] = {
    "slow": VideoNetwork(
        name="slow",
        published="slow_r50",
        files=_FILE,
        **_zoo(
            ZooEntry("slow_r50", "SLOW_8x8_R50.pyth", _ZOO, "--slow"),
            build_slow_r50,
            lambda: zoo_url("slow_r50"),
            SLOW_R50_FORM,
        ),
        tiny=lambda: (build_slow_tiny(), SLOW_TINY_FORM),
        randomise=random_convolutions.randomise_slow,
        module=slow_module,
        reference=before_proj,
        preprocessing=preprocessing.pytorchvideo_frames,
        pooling=f"{_WINDOWS} (slow_r50: four 7 x 7 windows)",
    ),
    "i3d": VideoNetwork(
        name="i3d",
        published="i3d_r50",
        files=_FILE,
        **_zoo(
            ZooEntry("i3d_r50", "I3D_8x8_R50.pyth", _ZOO, "--i3d"),
            build_i3d_r50,
            lambda: zoo_url("i3d_r50"),
            I3D_R50_FORM,
        ),
        tiny=lambda: (build_i3d_tiny(), I3D_TINY_FORM),
        randomise=random_convolutions.randomise_i3d,
        module=lambda net, _frames: pooled_module(net),
        reference=before_proj,
        preprocessing=preprocessing.pytorchvideo_frames,
        pooling=f"{_WINDOWS} (i3d_r50: one 7 x 7 window)",
    ),
    "resnet3d": VideoNetwork(
        name="resnet3d",
        published="r3d_18",
        files=_FILE,
        **_zoo(
            ZooEntry("r3d_18", "r3d_18-b3b3357e.pth", "torchvision's model zoo", "--resnet3d"),
            resnet3d.build_r3d_18,
            resnet3d.published_url,
            resnet3d.R3D_18_FORM,
        ),
        tiny=lambda: (resnet3d.build_r3d_tiny(), resnet3d.R3D_TINY_FORM),
        randomise=random_convolutions.randomise_resnet3d,
        module=lambda net, _frames: resnet3d.resnet3d_module(net),
        reference=resnet3d.before_fc,
        preprocessing=preprocessing.resnet3d_frames,
        pooling="mean over all positions",
    ),
    "videomae": VideoNetwork(
        name="videomae",
        published="MCG-NJU/videomae-base-finetuned-kinetics",
        files="a hub id (OWNER/MODEL[@REVISION]), a folder with config.json and model.safetensors",
        full=lambda: _videomae(videomae.VIDEOMAE_BASE_CONFIG),
        tiny=lambda: _videomae(videomae.VIDEOMAE_TINY_CONFIG),
        randomise=random_transformers.randomise_videomae,
        load=_load_videomae,
        fetch=_fetch_videomae,
        module=lambda net, _frames: videomae.videomae_module(net),
        reference=videomae.before_classifier,
        preprocessing=preprocessing.videomae_frames,
        pooling="mean of all tokens, normalised, as the classifier reads it",
    ),
}
