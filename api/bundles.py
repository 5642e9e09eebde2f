"""Bundles of frozen networks: opened, used on videos, exported."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..agent.named_videos import NamedVideo, find_videos
from ..agent.predict import Prediction, predict_videos
from ..base.errors import DataError, MissingExtra, UsageError
from ..base.extras import EXPORT_MODULES, missing_package
from ..base.progress import progress_bar
from ..runtime.bundle.packaged import resolve_bundle
from .checks import fixes, path_of, shown, whole_number
from .features import Features
from .loading import load
from .models import Model, load_model
from .runs import Run

if TYPE_CHECKING:
    from ..agent.extraction.report import ExtractReport
    from ..export.encoder.settings import Encoder
    from ..runtime.bundle.manifest import Manifest

PathLike = str | os.PathLike[str]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
NO_CLIPS = "give a folder with LABEL/clip.mp4, or with a labels.csv: bundle.extract('videos')"
MOST_NAMED = 3  # clips in a warning


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A folder with the frozen networks that turn a clip into an embedding: what ``open_bundle`` returns.

    Attributes:
        path: The folder.
        manifest: Its ``bundle.json``.
    """

    path: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides what an embedding means; a federation's silos must have the same."""
        return self.manifest.fingerprint

    @property
    def extractor(self) -> str:
        """The networks, such as ``blip+slow``."""
        return self.manifest.extractor

    @property
    def width(self) -> int:
        """D, the width of an embedding: 2816 for ``blip+slow``."""
        return self.manifest.width

    @property
    def precision(self) -> str:
        """The precision of the networks."""
        return self.manifest.precision

    def extract(
        self,
        videos: PathLike,
        *,
        store: PathLike | None = None,
        threads: int | None = None,
        aliases: Mapping[str, str] | None = None,
        progress: bool = True,
    ) -> Features:
        """Turn a folder of labelled videos into features.

        Args:
            videos: A folder of ``LABEL/clip.mp4``, or one with a ``labels.csv``: ``path,label``, and if wanted
                ``group``, ``person``, ``camera``, and ``start_s,end_s`` for segments of long recordings.
            store: A feature store that keeps the embeddings: later calls compute new clips only. Without it nothing
                is kept.
            threads: Cores for each network; all unless given.
            aliases: The class for labels that are called otherwise, as ``load`` takes it; the store keeps the labels.
            progress: Show a bar on a terminal, and a line every ten seconds elsewhere.

        Returns:
            The features of this bundle: of all clips in the store where there is one. A clip that cannot be read is
            left out with a warning.

        Raises:
            DataError: The folder holds no clips, or none can be read; a file of the bundle is not the exported one.
            MissingExtra: A package of the extra ``agent`` is not installed.
        """
        folder = path_of("videos", videos, like="bundle.extract('videos')")
        threads = None if threads is None else whole_number("threads", threads, least=1, like=4)
        with _store(store) as path:
            with fixes({"no_clips": NO_CLIPS}):
                report = self._extract(folder, path, threads, progress)
            _report_failures(report)
            return load(path, fingerprint=self.fingerprint, precision=report.precision, aliases=aliases)

    def _extract(self, videos: Path, store: Path, threads: int | None, progress: bool) -> ExtractReport:
        from ..agent.extraction.extract import clips_to_extract, extract_clips
        from ..agent.extraction.report import ExtractRequest

        folder = clips_to_extract(videos)
        request = ExtractRequest(self.path, videos, store, threads)
        if not progress:
            return extract_clips(request, folder, on_clip=lambda: None, stop=lambda: False)
        with progress_bar("extracting", len(folder.clips), unit="clip" if len(folder.clips) == 1 else "clips") as bar:
            return extract_clips(request, folder, on_clip=bar.advance, stop=lambda: False)

    def __repr__(self) -> str:
        return (
            f"Bundle: {self.extractor}, {self.width}-d embeddings, {self.precision}, "
            f"{self.fingerprint[:24]}, in {self.path}"
        )


def open_bundle(path: PathLike = "miniworld") -> Bundle:
    """Open a bundle folder.

    Args:
        path: The folder that ``flamest-export`` made. ``miniworld`` is the one that comes with this package: small
            networks, trained on rendered clips, for trying things out.

    Raises:
        DataError: The folder is no bundle.
    """
    from ..runtime.bundle.opening import open_manifest

    folder = resolve_bundle(path_of("path", path, like="fl.open_bundle('miniworld')"))
    manifest, _ = open_manifest(folder)
    return Bundle(folder, manifest)


def predict(
    videos: PathLike | Sequence[PathLike],
    *,
    model: Model | Run | PathLike,
    bundle: Bundle | PathLike,
    top: int = 5,
    threshold: float | None = None,
    segments: bool = False,
    progress: bool = True,
) -> list[Prediction]:
    """Name the action in videos.

    Args:
        videos: A video file, a part of one as ``clip.mp4#t=12.5,17`` (seconds), a folder, or several of them.
        model: A model, the run that made it, or its file.
        bundle: The bundle whose embeddings it was trained on.
        top: How many labels to give for each video.
        threshold: The answer is ``unknown`` where no label's probability reaches it, 0 to 1; with 0 never. By default
            the model's own thresholds decide, if it has any.
        segments: Of folders take the clips that their ``labels.csv`` lists, not all files.
        progress: Show a bar on a terminal, and a line every ten seconds elsewhere.

    Returns:
        A ``Prediction`` for each video, in order, then for what cannot be used of the folders: ``video``, ``segment``
        (of a part, with ``start_s`` and ``end_s``), ``label`` (the most probable one), ``answer`` (the same, or
        ``unknown``; then ``known`` is False), ``labels`` (each with ``label`` and ``probability``), ``caption``, and
        ``reason`` where it could not be read or there is no such file.

    Raises:
        UsageError: An argument is of another type.
        DataError: No video was given, or the folders hold none; the model was trained on the embeddings of another
            bundle.
        MissingExtra: A package of the extra ``agent`` is not installed.
    """
    top = whole_number("top", top, least=1, like=5)
    files, unusable = _video_files([videos] if isinstance(videos, str | os.PathLike) else videos, segments)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(path_of("bundle", bundle, like="bundle='miniworld'"))
    used = model_of(model)
    found = predict_videos(opened.path, used.file(), files, top=top, threshold=threshold)
    if not progress:
        return [*found, *unusable]
    predictions = []
    with progress_bar("predicting", len(files), unit="video" if len(files) == 1 else "videos") as bar:
        for prediction in found:
            predictions.append(prediction)
            bar.advance()
    return [*predictions, *unusable]


def export_bundle(
    out: PathLike,
    *,
    extractor: str | Encoder = "blip+slow",
    weights: str = "published",
    precision: Precision = "fp32",
    calibration: PathLike | None = None,
    threads: int | None = None,
) -> Bundle:
    """Export frozen networks from PyTorch to a bundle folder, as ``flamest-export --backend onnx`` does.

    The export ends with a comparison of every graph with PyTorch. Options of single networks and TensorRT engines are
    the command's alone.

    Args:
        out: The folder to make.
        extractor: The networks; ``flamest-export extractors`` lists them. Or an encoder of your own: its TOML file, or
            a ``flamest.export.Encoder`` (docs/guides/own-encoder.md).
        weights: Their source: ``published``, ``miniworld``, ``random:full`` or ``random:tiny``.
        precision: Of matrix products and convolutions (docs/explanation/precision.md).
        calibration: A folder of one's own clips, which ``int8`` gets its ranges from.
        threads: Cores to use; all unless given.

    Raises:
        UsageError: An option does not exist.
        DataError: A graph differs from PyTorch by more than its precision allows; nothing is left.
        StorageError: The folder exists.
        MissingExtra: A package of the extra ``export`` is not installed.
    """
    if package := missing_package(EXPORT_MODULES):
        raise MissingExtra(package, extra="export")
    from ..export.bundle import build_bundle
    from ..export.request import ExportOptions, read_request

    threads = None if threads is None else whole_number("threads", threads, least=1, like=4)
    options = ExportOptions(
        backend="onnx",
        out=path_of("out", out, like="fl.export_bundle('bundle')"),
        extractor=extractor if isinstance(extractor, str) else extractor.name,
        weights=weights,
        precision=[precision],
        calibration=None if calibration is None else Path(calibration),
        threads=threads,
    )
    build_bundle(read_request(options, "", None if isinstance(extractor, str) else extractor))
    return open_bundle(out)


def model_of(given: Model | Run | PathLike) -> Model:
    """Return the model that was given, as itself, by the run that made it, or by its file."""
    if isinstance(given, Run):
        return given.model
    return given if isinstance(given, Model) else load_model(path_of("model", given, like="model=run.model"))


@contextmanager
def _store(given: PathLike | None) -> Iterator[Path]:
    """Give the path of the store: the one given, or one that is removed at the end."""
    if given is not None:
        yield path_of("store", given, like="store='features.sqlite'")
        return
    with tempfile.TemporaryDirectory(prefix="flamest-") as folder:
        yield Path(folder) / "features.sqlite"


def _report_failures(report: ExtractReport) -> None:
    """Warn of clips that could not be read. Raises DataError (``all_clips_failed``) when no clip could."""
    if not report.failed:
        return
    named = "; ".join(f"{failed.clip}: {failed.reason}" for failed in report.failed[:MOST_NAMED])
    more = f"; and {len(report.failed) - MOST_NAMED} more" if len(report.failed) > MOST_NAMED else ""
    if report.nothing_usable:
        raise DataError(
            f"none of the {report.clips} clips is usable: {named}{more}",
            fix="flamest-agent doctor shows if this machine can decode video",
            code="all_clips_failed",
        )
    warnings.warn(f"{report.failed_clips} of {report.clips} clips are left out: {named}{more}", stacklevel=3)


def _video_files(given: Sequence[PathLike], segments: bool) -> tuple[list[NamedVideo], list[Prediction]]:
    """Return the video files, and what of the folders cannot be one. Raises DataError without any video."""
    if not isinstance(given, Iterable):
        raise UsageError(f"videos is {shown(given)}, expected paths", fix="write fl.predict(['clip.mp4'], …)")
    paths = [path_of("a video", path, like="fl.predict(['clip.mp4'], …)") for path in given]
    files, problems = find_videos(paths, segments=segments)
    unusable = [Prediction(each.path, reason=each.reason) for each in problems]
    if not files:
        reasons = "; ".join(f"{each.video}: {each.reason}" for each in unusable[:MOST_NAMED])
        raise DataError(
            f"no video was given{': ' * bool(reasons)}{reasons}",
            fix="fl.predict(['clip.mp4'], …), or a folder of videos",
            code="no_clips",
        )
    return files, unusable
