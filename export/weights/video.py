"""Weights of the spatio-temporal networks: of a model zoo, of the hub, of a local file, or seeded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra, UnreachableError
from ...base.files import printable_path
from ...base.progress import note
from ..networks.reference import VideoForm, VideoNetwork
from ..networks.resnet3d import RESNET3D, published_url
from ..networks.slow_i3d import I3D, SLOW, zoo_url
from ..networks.videomae import VIDEOMAE, videomae_form
from .checkpoints import BATCH_COUNT, check_tensors, load_checkpoint
from .download import Wanted, download
from .hub import local_or_hub
from .hub_folder import VIDEOMAE_FILES, load_videomae
from .network_errors import OFFLINE, is_offline
from .random_convolutions import randomise_i3d, randomise_resnet3d, randomise_slow
from .random_transformers import randomise_videomae
from .releases import BY_SOURCE
from .source import PUBLISHED, WeightSource

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ZooFile:
    """One published checkpoint of a model zoo."""

    name: str  # "SLOW_8x8_R50.pyth"
    zoo: str  # "PyTorchVideo's model zoo"
    url: Callable[[], str]


@dataclass(frozen=True, eq=False)
class VideoWeights:
    """Sources of one network's weights."""

    network: VideoNetwork
    randomise: Callable[..., None]  # (net, form, *, seed)
    zoo: ZooFile | None  # None: the hub has it


_PYTORCHVIDEO = "PyTorchVideo's model zoo"
VIDEO_WEIGHTS: Mapping[str, VideoWeights] = {
    "slow": VideoWeights(
        SLOW, randomise_slow, ZooFile("SLOW_8x8_R50.pyth", _PYTORCHVIDEO, lambda: zoo_url("slow_r50"))
    ),
    "i3d": VideoWeights(I3D, randomise_i3d, ZooFile("I3D_8x8_R50.pyth", _PYTORCHVIDEO, lambda: zoo_url("i3d_r50"))),
    "resnet3d": VideoWeights(
        RESNET3D, randomise_resnet3d, ZooFile("r3d_18-b3b3357e.pth", "torchvision's model zoo", published_url)
    ),
    "videomae": VideoWeights(VIDEOMAE, randomise_videomae, None),
}


def load_video(weights: VideoWeights, source: WeightSource) -> tuple[nn.Module, VideoForm, str]:
    """(network, form, revision) from local files, a model zoo or the hub.

    Raises UnreachableError without network, DataError naming what does not fit the architecture.
    """
    net: Any
    if weights.zoo is None:
        path, revision = local_or_hub(source, to_bring=VIDEOMAE_FILES)
        net, sha256 = load_videomae(path, source)
        found = "local file" if path.is_file() else revision
        return net, videomae_form(net.config), with_file_hash(source, found, sha256)
    net, form = weights.network.full()
    if source.kind == "files":
        what = f"{weights.zoo.name} ({PUBLISHED[source.network]}, 400 classes)"
        checkpoint = load_checkpoint(source.path, sha256=source.sha256)
        filled = fill_video(net, checkpoint.tensors, file=source.path, what=what)
        return filled, form, with_file_hash(source, "local file", checkpoint.sha256)
    cached = fetch_zoo_file(weights.zoo, source)
    checkpoint = load_checkpoint(cached, sha256=source.expected_sha256(cached))
    filled = fill_video(net, checkpoint.tensors, file=cached, what=source.text)
    return filled, form, with_file_hash(source, f"{weights.zoo.name} of {weights.zoo.zoo}", checkpoint.sha256)


def with_file_hash(source: WeightSource, revision: str, sha256: str) -> str:
    """The manifest's revision: with the hash of a fetched file, which the next export can ask for."""
    return f"{revision}, file SHA-256 {sha256}" if source.kind in ("hub", "zoo") else revision


def zoo_cache() -> Path:
    """Return the folder into which PyTorch downloads published checkpoints."""
    from torch import hub

    return Path(hub.get_dir()) / "checkpoints"


def fetch_zoo_file(entry: ZooFile, source: WeightSource) -> Path:
    """Return the file in PyTorch's download cache, fetched from the model zoo where it is not there yet.

    The hash of a file that was there is checked when it is read. Raises UnreachableError, naming the file to bring,
    when it cannot be fetched or HF_HUB_OFFLINE forbids it (``bad_download`` when what arrived is not the file);
    StorageError.
    """
    try:
        cached = zoo_cache() / entry.name
    except ImportError as error:
        raise MissingExtra("torch", extra="export") from error
    if os.path.lexists(cached):
        return cached
    fix = (
        f"bring {entry.name} of {entry.zoo} ({source.text}, Kinetics) to this machine, then type: "
        f"flamest-export --backend onnx {source.option} PATH/{entry.name} --out DIR"
    )
    if is_offline():
        raise UnreachableError(
            f"{entry.name} of {source.text} is not in {printable_path(cached.parent)}, and {OFFLINE.reason}",
            fix=f"{OFFLINE.fix}; or {fix}",
        )
    release = BY_SOURCE[source.text]
    note(f"fetching {entry.name} to {printable_path(cached.parent)}; licence: {release.licence}")
    download(
        Wanted(
            entry.url(), f"{entry.name} of {source.text}", bytes=release.bytes, sha256=source.expected_sha256(cached)
        ),
        cached,
        fix=fix,
    )
    return cached


def fill_video(net: nn.Module, tensors: dict[str, Tensor], *, file: Path, what: str) -> nn.Module:
    """Set every weight of ``net`` from ``tensors``, which must fit to the last name and shape.

    ``what``: the architecture, for the DataError that names what does not fit.
    """
    # The number of batches that a norm has seen matters in training only; older checkpoints leave it out.
    counts = {name: value for name, value in net.state_dict().items() if name.endswith(BATCH_COUNT)}
    tensors = {**counts, **tensors}
    check_tensors(tensors, net.state_dict(), file=file, what=what)
    for name in (name for name in tensors if name.endswith("running_var")):
        if not bool((tensors[name] >= 0).all()):
            raise DataError(
                f"{file}: '{name}' holds a negative variance",
                fix="download the published file again",
                code="wrong_checkpoint",
            )
    net.load_state_dict(tensors, strict=True)
    return net
