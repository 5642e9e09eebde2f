"""The videos of a folder as the page knows them: by an opaque name that leads to no other file."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...base.files import open_regular
from ...runtime.video import is_video_name
from ..extraction.clips import scan_clips

# Containers that browsers play themselves, mostly; whether they can is seen when they try. Others go through a proxy.
MEDIA_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm"}
UNNAMEABLE = "its name cannot be written in labels.csv: rename the file, without control characters or blanks at an end"


@dataclass(frozen=True)
class FolderVideo:
    """A video file of the folder, or one that labels.csv names."""

    id: str
    path: str  # relative to the folder, with slashes, as labels.csv has it
    shown: str  # the same for a person, escaped where it is not printable
    size: int = 0  # bytes
    modified_ns: int = 0
    problem: str = ""  # why it cannot be used

    @property
    def playable(self) -> bool:
        return not self.problem and PurePosixPath(self.path).suffix.lower() in MEDIA_TYPES

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES.get(PurePosixPath(self.path).suffix.lower(), "application/octet-stream")


class FolderVideos:
    """Finds the videos of ``folder`` and gives each an identifier, the same as long as this object lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder.resolve()
        self._secret = secrets.token_bytes(32)

    def id_of(self, path: str) -> str:
        """Return the opaque identifier of a path in the folder."""
        data = path.encode(errors="surrogateescape")
        return hmac.new(self._secret, data, hashlib.sha256).hexdigest()[:24]

    def scan(self) -> dict[str, FolderVideo]:
        """Return all videos by their identifier, in the order of their names. Opens none of them.

        Raises StorageError when the folder cannot be read.
        """
        found = scan_clips(self.folder, labelled=False)
        videos = [self._video(clip.path, clip.name) for clip in found.clips]
        videos += [
            FolderVideo(self.id_of(problem.name), problem.name, problem.name, problem=problem.reason)
            for problem in found.problems
        ]
        return {video.id: video for video in sorted(videos, key=lambda video: video.shown)}

    def missing(self, path: str) -> FolderVideo:
        """Return the entry for a path that labels.csv names and where no video was found."""
        problem = "there is no such file in the folder" if is_video_name(path) else "is not a video by its name"
        return FolderVideo(self.id_of(path), path, printable_name(path), problem=problem)

    def open(self, video: FolderVideo):  # type: ignore[no-untyped-def]  # BinaryIO
        """Open the file to read, nothing outside of the folder. Raises DataError, StorageError."""
        return open_regular(self.root / video.path, inside=self.root)

    def _video(self, path: Path, shown: str) -> FolderVideo:
        name = path.relative_to(self.folder).as_posix()
        problem = "" if is_row_path(name) else UNNAMEABLE
        try:
            status = path.stat()
        except OSError as error:
            return FolderVideo(self.id_of(name), name, shown, problem=f"cannot be read: {error.strerror}")
        return FolderVideo(self.id_of(name), name, shown, status.st_size, status.st_mtime_ns, problem)


def is_row_path(name: str) -> bool:
    """True for a path that labels.csv can hold: UTF-8 text without control characters or blanks at an end."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name == name.strip() and not any(unicodedata.category(letter) == "Cc" for letter in name)


def printable_name(text: str) -> str:
    """Return the text for a person: escaped where it holds letters that cannot be seen or turn the reading order."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
