"""The newest model of a file that another process replaces."""

from __future__ import annotations

from pathlib import Path

from ...base.errors import DataError, StorageError
from ...base.files import FileStamp, sha256_file
from ...base.log import Log
from ...fedproto.model_file import ModelFile, read_model
from ...runtime.bundle.manifest import Manifest
from ..predict import check_bundle

log = Log("follow")


class NewestModel:
    """Reads the file when it has changed. A model that cannot be used is reported once, and the one before stays."""

    def __init__(self, path: Path, manifest: Manifest, bundle: Path) -> None:
        self._path, self._manifest, self._bundle = path, manifest, bundle
        self._stamp: FileStamp | None = None
        self._missing = False
        self.model: ModelFile | None = None  # None: there was none yet
        self.sha256 = ""  # of its file

    def refresh(self) -> None:
        """Take the file's model if it is another one."""
        try:
            stamp = FileStamp.of(self._path)
        except OSError:
            if not self._missing:
                log.warning("no_model", detail="waiting for it" if self.model is None else "the one before stays")
            self._missing = True
            return
        self._missing = False
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            read, sha256 = read_model(self._path), sha256_file(self._path)
            check_bundle(read, self._path, self._manifest, self._bundle)
        except (DataError, StorageError) as error:
            kept = self.sha256[:12] or "none"
            log.error("model_refused", code=error.code, detail=error.message, model=kept)
            return
        self.model, self.sha256 = read, sha256
        log.info("model", model=sha256[:12], run=read.run, round=read.round, classes=len(read.labels))
