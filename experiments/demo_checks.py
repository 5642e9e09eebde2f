"""Everything that the demo needs, checked before it renders or exports anything."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import DataError, MissingExtra, SettingsError, StorageError, UsageError
from ..base.extras import EXPORT_MODULES, missing_package, role
from ..base.files import printable_path
from ..fedproto.head import HeadSpec
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.opening import open_bundle
from ..runtime.bundle.packaged import resolve_bundle
from .miniworld.videos import CLASSES, check_encoders
from .silos import LabelledVideo, Split, labelled_videos, split_videos

SCENES = 16  # of the mini-world, with one clip per class: 400 clips
# Packages of the extras that the demo runs on, by the names under which Python imports them.
DEMO_PACKAGES = (
    "grpc", "google.protobuf", "cryptography", "safetensors", "apsw",
    "av", "onnx", "onnxruntime", "PIL", "sklearn", "tokenizers",
)  # fmt: skip
RENDERED_BYTES = 90_000_000  # of the mini-world's clips, with room to spare
STORED_BYTES_PER_CLIP = 20_000  # features and databases
SPARE_BYTES = 100_000_000  # bundle, logs, databases
PROBED = 40  # of the given clips, evenly spread


@dataclass(frozen=True)
class DemoRequest:
    """Options of ``flamest-demo``."""

    out: Path
    videos: Path | None  # None: render the mini-world
    bundle: Path | None  # None: the mini-world's networks
    silos: int
    rounds: int
    beta: float  # of the Dirichlet split; small is far from IID
    test_share: float  # of the clips, by whole groups
    seed: int
    threads: int  # per silo
    export: bool = False  # the mini-world's networks from PyTorch, instead of the bundle in the package

    def split(self, videos: Sequence[LabelledVideo]) -> Split:
        """The clips held out for the test and those of each silo. Raises DataError when there are too few."""
        split = split_videos(videos, silos=self.silos, beta=self.beta, test_share=self.test_share, seed=self.seed)
        if not split.test:
            raise DataError(
                f"all {len(videos)} clips are of one group, so none can be held out for the test",
                fix="name each clip's scene or person in a labels.csv, in a column called group",
            )
        return split


@dataclass(frozen=True)
class DemoInputs:
    """Bundle and clips that were given, checked; None where the demo makes them."""

    bundle: Path | None
    videos: tuple[LabelledVideo, ...] | None


def check_demo(request: DemoRequest) -> DemoInputs:
    """Check packages, output folder, loopback, the given clips and bundle, and free disk, and write nothing.

    Raises MissingExtra, UsageError, StorageError, DataError or SettingsError.
    """
    _check_packages(request)
    _check_output(request.out)
    _check_loopback()
    manifest, bundle = _check_bundle(request)
    videos = _check_videos(request)
    _check_disk(request, videos, manifest)
    return DemoInputs(bundle, videos)


def _check_packages(request: DemoRequest) -> None:
    _check_installed(DEMO_PACKAGES, "agent,coordinator")
    if request.export:
        with role("export"):  # the rest is there: the command to type is for this extra alone
            _check_installed(EXPORT_MODULES, "export")
    if request.videos is None:
        check_encoders()


def _check_installed(packages: Sequence[str], extra: str) -> None:
    if package := missing_package(packages):
        raise MissingExtra(package, extra=extra)


def _check_output(out: Path) -> None:
    """Raise StorageError unless ``out`` is new or empty, so that runs are never mixed, and can be written."""
    if out.exists() and not out.is_dir():
        raise StorageError(f"{printable_path(out)} is not a folder", fix="give another --out")
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"{printable_path(out)} exists and is not empty", fix=f"rm -r {out}, or use another --out")
    if not os.access(_existing(out), os.W_OK | os.X_OK):
        raise StorageError(
            f"{printable_path(_existing(out))} may not be written to by this user", fix="give --out a folder of yours"
        )


def _existing(path: Path) -> Path:
    """The nearest folder above ``path`` that exists, or ``path`` itself."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _check_loopback() -> None:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
    except OSError as error:
        raise SettingsError(
            f"no port of 127.0.0.1 can be opened: {error.strerror}; coordinator and silos talk there",
            fix="allow connections on the loopback interface (a container or a sandbox may forbid them)",
        ) from error


def _check_bundle(request: DemoRequest) -> tuple[Manifest | None, Path | None]:
    if request.export and request.bundle is not None:
        raise UsageError(
            f"--export and --bundle {request.bundle}: the demo uses one bundle",
            fix="leave one of them out",
        )
    if request.bundle is None:
        return None, None
    path = resolve_bundle(request.bundle)
    return open_bundle(path).manifest, path


def _check_videos(request: DemoRequest) -> tuple[LabelledVideo, ...] | None:
    if request.videos is None:
        return None
    videos = labelled_videos(request.videos)
    files = list(dict.fromkeys(video.path for video in videos))
    for path in files:
        if not os.access(path, os.R_OK):
            raise StorageError(
                f"{printable_path(path)} may not be read by this user", fix=f"chmod -R u+rX {request.videos}"
            )
    request.split(videos)
    _check_some_can_be_read(request.videos, files)
    return videos


def _check_some_can_be_read(folder: Path, files: Sequence[Path]) -> None:
    """Read some files' headers. One that is damaged is left out later; when all are, these are no videos."""
    from .metadata import metadata_features

    step = max(1, len(files) // PROBED)
    probed = files[::step]
    widths = metadata_features(probed)[:, 0]
    if not widths.any():
        raise DataError(
            f"none of {len(probed)} files of {printable_path(folder)} can be read as a video, "
            f"{printable_path(probed[0])} among them",
            fix="give --videos a folder of clips that FFmpeg can read (MP4, AVI, MKV, …)",
        )


def _check_disk(request: DemoRequest, videos: Sequence[LabelledVideo] | None, manifest: Manifest | None) -> None:
    needed = needed_bytes(request, videos, manifest)
    place = _existing(request.out)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise StorageError(
            f"{printable_path(place)} has {free / 1e6:.0f} MB of free disk, and the demo needs {needed / 1e6:.0f} MB",
            fix="free some, or give --out a folder on another disk",
            code="disk_full",
        )


def needed_bytes(request: DemoRequest, videos: Sequence[LabelledVideo] | None, manifest: Manifest | None) -> int:
    """Bytes that the demo will write at most: clips, features, models, and room to spare."""
    width, classes, clips, copied = 384, len(CLASSES), len(CLASSES) * SCENES, RENDERED_BYTES
    if manifest is not None:
        width = manifest.width
    if videos is not None:
        classes, clips = len({video.label for video in videos}), len(videos)
        device = _existing(request.out).stat().st_dev
        files = {video.path for video in videos}
        copied = sum(found.st_size for path in files if (found := path.stat()).st_dev != device)
    model = 4 * HeadSpec(inputs=width, outputs=classes).parameters
    # A model a round at the coordinator and one taken out; updates and models of each silo.
    models = model * (2 * request.rounds + 6 * request.silos)
    return copied + clips * STORED_BYTES_PER_CLIP + models + SPARE_BYTES
