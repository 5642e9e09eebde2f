"""``predict --follow``: events of every new video of a folder, for as long as the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...base.place import Place
    from ...runtime.backends.options import BackendOptions
    from ..timeline.windows import WindowPlan
    from .timelines import PredictWith

RECORD = "answered.sqlite"  # in the daemon's state folder


def check_follow_options(
    folder: Path | None, videos: list[Path] | None, *, other: dict[str, object], own: dict[str, object]
) -> None:
    """Raise UsageError unless the options belong together. ``other``: those that --follow does not take."""
    from ...base.errors import DataError, UsageError

    if folder is None:
        if given := [name for name, value in own.items() if value is not None]:
            raise UsageError(f"{given[0]} is for --follow", fix="add --follow DIR")
        if not videos:
            raise UsageError("no video was given", fix="give video files or folders, or --follow DIR")
        return
    if videos:
        raise UsageError("--follow DIR and videos: expected one of them", fix="put the videos into DIR")
    if given := [name for name, value in other.items() if value]:
        raise UsageError(f"{given[0]} and --follow: expected one of them", fix=f"leave {given[0]} out")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", fix="give the folder that videos come into", code="no_clips")


def record_path(place: Place, answered: Path | None, out: Path | None) -> Path:
    """Return the file of the record of answered videos. Raises UsageError where nothing says where it is to be."""
    from ...base.errors import UsageError
    from ..settings import load_agent_settings

    if answered is not None:
        return answered
    try:
        return load_agent_settings(place.path).state / RECORD
    except UsageError as error:
        if out is not None:
            return out.with_name(f"{out.name}.{RECORD}")
        raise UsageError(
            "--follow needs a file to remember which videos were answered", fix="give --answered FILE"
        ) from error


def run_follow(
    folder: Path,
    given: PredictWith,
    backend_options: BackendOptions,
    plan: WindowPlan,
    *,
    record: Path,
    out: Path | None,
    every_s: float,
) -> dict[str, Any]:
    """Follow the folder until SIGTERM or SIGINT. Raises as ``follow``."""
    from ...base.log import configure_logging
    from ...base.process import Shutdown, keep_crashes_private
    from ..follow.loop import FollowRequest, follow
    from ..follow.work import Networks

    shutdown = Shutdown.on_signals()
    level = configure_logging().level
    keep_crashes_private(full_messages=level == "debug")
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    inside = folder.resolve()
    networks = Networks(given.bundle, plan, backend_options, given.opening.threads, given.trusted, inside)
    request = FollowRequest(folder, networks, given.model, record, out, given.top, given.threshold, every_s=every_s)
    return follow(request, shutdown)
