"""Video files: their names, decoding in a limited child process, reading ahead, preprocessing."""

from __future__ import annotations

from pathlib import Path

# Of the container formats that the decoder reads (video_file.ALLOWED_FORMATS); a file is recognised by its name alone.
VIDEO_SUFFIXES = frozenset(
    {".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"}
    | {".wmv", ".asf", ".flv", ".ogv", ".3gp", ".3g2"}
)


def is_video_name(name: str) -> bool:
    """True where ``name`` ends like a video file's, in upper or lower case."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def find_video_files(folder: Path) -> list[Path]:
    """All video files below ``folder``, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if is_video_name(path.name) and path.is_file())
