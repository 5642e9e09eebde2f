"""New clips of the video folder into the feature store, now and then while the daemon runs."""

from __future__ import annotations

import time

from ..base.errors import FlamestError
from ..base.log import Log
from .extraction.report import ExtractRequest
from .settings import AgentSettings
from .status import StatusNotes
from .tasks import extract_new
from .worker import Worker, WorkStopped

LOG_EVERY_S = 60.0  # the progress of an extraction

log = Log("agent")


class NewClips:
    """Looks for clips every ``work.rescan_s`` seconds; used by the daemon alone."""

    def __init__(self, settings: AgentSettings, worker: Worker, notes: StatusNotes) -> None:
        self._settings = settings
        self._worker = worker
        self._notes = notes
        self._scanned = -settings.work.rescan_s
        self._logged = 0.0  # progress of an extraction
        self._noted: dict[str, int] = {}  # notes on the clips, by code, that are in the log

    def extract_if_due(self) -> None:
        """Extract new clips of the video folder when it is time; a failure is logged and never ends the daemon."""
        settings = self._settings
        if settings.videos is None or settings.bundle is None:
            return
        if time.monotonic() - self._scanned < settings.work.rescan_s:
            return
        self._notes.set_state("extracting")
        self._logged = time.monotonic()
        try:
            request = ExtractRequest(
                settings.bundle,
                settings.videos,
                settings.store,
                threads=settings.work.threads,
                limits=settings.work.limits,
                trusted=settings.trust(),
                backend_options=settings.work.backend_options,
                training_precision=settings.precision,
                pipeline=settings.work.pipeline(),
                device=settings.work.device,
                rules=settings.rules,
            )
            extracted = self._worker.call(extract_new, request, on_progress=self._note_progress)
            log.info("extracted", **extracted.figures, **extracted.backends)
            if extracted.used_stored_precision:
                precision = extracted.figures["precision"]
                log.warning("store_precision_used", precision=precision, fix="set precision under [work]")
            if extracted.notes and extracted.notes != self._noted:
                log.warning("clip_notes", **extracted.notes, see="flamest-agent clips")
            self._noted = extracted.notes
            if extracted.failed:
                log.warning("clips_failed", **extracted.failed)
            backends = extracted.backends or self._notes.status.backends
            self._notes.note(
                backends=backends, extraction="", failed_clips=extracted.failed, unlisted_clips=extracted.unlisted
            )
        except WorkStopped:
            raise
        except FlamestError as error:  # its message may name files: it goes to the status, not to the log
            self._notes.note(extraction=f"{error.code}: {error.with_fix}")
            log.error("extraction_failed", code=error.code, see="flamest-agent status")
            log.debug("extraction_failed", detail=error.message)
        self._scanned = time.monotonic()

    def _note_progress(self, progress: tuple[int, int]) -> None:
        """Show the progress of an extraction in the status, and once a minute in the log."""
        done, clips = progress
        self._notes.note(detail=f"{done} of {clips} clips")
        if time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            log.info("extracting", done=done, clips=clips)
