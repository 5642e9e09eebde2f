"""The loop of ``predict --follow``: look for new videos, answer them, write their events, wait.

The heavy work runs in a worker process, as the daemon's does: a crash there costs one try of one video.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.clock import utc_text
from ...base.errors import DataError, FlamestError, StorageError
from ...base.files import FileLock
from ...base.log import Log
from ...base.process import Shutdown
from ...runtime.bundle.opening import open_manifest
from ..extraction.failures import REMEMBERED_CODES
from ..pauses import GrowingPause
from ..timeline.events import TimelineEvent
from ..worker import Worker, WorkerCrashed, WorkStopped
from .answered import AnsweredVideos, FileContent
from .new_videos import MOST_TRIES, NewVideo, NewVideos
from .newest_model import NewestModel
from .output import EventOutput
from .work import Networks, Question, answer_video, hash_video, open_networks

IDLE_S = 60.0  # after that the networks are closed, and opened again for the next video
CHANGED_CODES = frozenset(
    {"video_changed", "video_unreadable", "missing"}
)  # it is not as it was found: looked at again

log = Log("follow")


@dataclass(frozen=True)
class FollowRequest:
    """Everything that following a folder is done with."""

    folder: Path
    networks: Networks
    model: Path  # that other processes may replace
    answered: Path  # SQLite file of the videos that were answered
    out: Path | None  # file that events are appended to; None: stdout
    top: int
    threshold: float | None
    every_s: float  # from one look at the folder to the next


def follow(request: FollowRequest, shutdown: Shutdown) -> dict[str, Any]:
    """Answer every new video until asked to stop; return counts of what was answered.

    Raises DataError, SettingsError or StorageError for what is wrong from the beginning; LockedError when another
    process uses the same record of answered videos.
    """
    manifest, _ = open_manifest(request.networks.bundle)
    lock = request.answered.with_name(f"{request.answered.name}.lock")
    with FileLock.take(lock, owner="flamest-agent predict --follow"), Worker(shutdown, idle_s=IDLE_S) as worker:
        answered = AnsweredVideos(request.answered)
        try:
            model = NewestModel(request.model, manifest, request.networks.bundle)
            return _Follower(request, shutdown, worker, answered, model).serve()
        finally:
            answered.close()


class _Follower:
    def __init__(
        self,
        request: FollowRequest,
        shutdown: Shutdown,
        worker: Worker,
        answered: AnsweredVideos,
        model: NewestModel,
    ) -> None:
        self._request, self._shutdown, self._worker = request, shutdown, worker
        self._answered, self._model = answered, model
        self._new = NewVideos(request.folder, answered, settle_s=0.9 * request.every_s)
        self._output = EventOutput(request.out, answered)
        self._pause = GrowingPause()
        self._problem = ""  # logged last, of the folder or the disk
        self._counts = Counter[str](videos=0, events=0, failed=0)

    def serve(self) -> dict[str, Any]:
        log.info("following", every_s=self._request.every_s)
        while not self._shutdown.requested:
            pause = self._request.every_s
            try:
                self._output.recover()
                self._model.refresh()
                if self._model.model is not None:
                    self._answer_new()
                self._problem = ""
            except WorkStopped:
                break
            except FlamestError as error:
                pause = max(pause, self._note_problem(error))
            self._worker.rest()
            self._shutdown.wait(pause)
        log.info("stopped", **self._counts)
        return dict(self._counts)

    def _note_problem(self, error: FlamestError) -> float:
        """Log what stops all videos for now, once; return the pause until it is tried again."""
        if error.code != self._problem:
            log.error("cannot_go_on", code=error.code, detail=error.message, fix="it is tried again")
        self._problem = error.code
        return self._pause.pause_s()

    def _answer_new(self) -> None:
        for video in self._new.scan():
            if self._shutdown.requested:
                return
            self._worker.call(open_networks, self._request.networks)
            self._answer(video)
            self._model.refresh()

    def _answer(self, video: NewVideo) -> None:
        """Answer one video. Raises StorageError where the events cannot be written, WorkStopped."""
        sha256 = ""
        try:
            sha256 = self._worker.call(hash_video, video.path, self._request.networks.inside)
            file = FileContent(video.name, video.stamp, sha256)
            if self._answered.has(sha256):
                self._answered.note(file)
                return
            events = self._ask(video)
        except WorkStopped:
            raise
        except (DataError, StorageError, WorkerCrashed) as error:
            if not self._is_final(error, video) or not sha256:
                self._new.try_later(video)
                log.debug("later", code=error.code, detail=error.message)
                return
            events = [TimelineEvent(0.0, 0.0, "", 0.0, reason=f"{error.code}: {error.message}")]
            self._counts["failed"] += 1
            log.warning("video_failed", code=error.code)
        self._output.write(file, b"".join(self._line(video, event) for event in events))
        self._counts["videos"] += 1
        self._counts["events"] += len(events)
        log.info("answered", events=len(events))

    def _ask(self, video: NewVideo) -> list[TimelineEvent]:
        request, model = self._request, self._model.model
        assert model is not None  # otherwise no video is looked for
        question = Question(video.path, model, request.top, request.threshold)
        return self._worker.call(answer_video, request.networks, question)

    def _is_final(self, error: FlamestError, video: NewVideo) -> bool:
        """Return whether the failure is the video's answer: its content causes it, or it stays try after try."""
        if error.code in CHANGED_CODES:
            return False
        return error.code in REMEMBERED_CODES or video.tries + 1 >= MOST_TRIES

    def _line(self, video: NewVideo, event: TimelineEvent) -> bytes:
        entry = event.as_json()
        if event.windows == 0:  # of the whole video
            entry |= {"start": None, "end": None}
        shown = {"video": str(video.path), **entry, "model": self._model.sha256[:12], "answered": utc_text()}
        return json.dumps(shown).encode() + b"\n"
