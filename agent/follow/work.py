"""The work on one video, in the worker process: its networks stay open from video to video."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import DataError
from ...fedproto.model_file import ModelFile
from ...runtime.backends.opening import OpeningOptions
from ...runtime.backends.options import BackendOptions
from ...runtime.bundle.signature import TrustedKeys
from ...runtime.video.decoder import DecodeLimits
from ..answers import Answers
from ..extraction.contents import content_hash
from ..timeline.events import TimelineEvent
from ..timeline.reading import TimelineReader, open_reader
from ..timeline.windows import WindowPlan


@dataclass(frozen=True)
class Networks:
    """Settings that the networks are opened with."""

    bundle: Path
    plan: WindowPlan
    backend_options: BackendOptions
    threads: int | None
    trusted: TrustedKeys
    inside: Path  # real path of the folder that videos must be in


@dataclass(frozen=True, eq=False)
class Question:
    """One video for one model."""

    path: Path
    model: ModelFile
    top: int
    threshold: float | None


_opened: tuple[Networks, AbstractContextManager[TimelineReader], TimelineReader] | None = None


def hash_video(path: Path, inside: Path) -> str:
    """Return the SHA-256 of a video's content. Raises DataError as ``content_hash``."""
    return content_hash(path, DecodeLimits(inside=inside))


def open_networks(networks: Networks) -> None:
    """Open them, unless they are. Raises as ``open_reader``."""
    _reader(networks)


def answer_video(networks: Networks, question: Question) -> list[TimelineEvent]:
    """Return a video's events. Raises DataError or StorageError when none of it can be read."""
    answers = Answers(question.model, top=question.top, threshold=question.threshold, threads=networks.threads)
    events = list(_reader(networks).events(question.path, answers))
    if not events:
        raise DataError("shows no frame", fix="remove it, or convert it again", code="video_damaged")
    return events


def _reader(networks: Networks) -> TimelineReader:
    global _opened
    if _opened is None or _opened[0] != networks:
        opening = OpeningOptions(networks.backend_options, networks.threads)
        manager = open_reader(
            networks.bundle,
            plan=networks.plan,
            opening=opening,
            trusted=networks.trusted,
            limits=DecodeLimits(inside=networks.inside),
        )
        _opened = networks, manager, manager.__enter__()
    return _opened[2]
