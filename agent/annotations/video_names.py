"""Find the file below a folder that a tool means by a video's name.

Tools know a video by another name than the folder: by an address, a path of another machine, with the prefix of an
upload, without its suffix. A name is compared in steps, from the strictest; the first step that finds a file decides,
and where it finds several none is used. Only names of files in the folder are ever compared: no path is opened.

Label Studio stores an upload as ``data/upload/PROJECT/xxxxxxxx-NAME``, with blanks as ``_`` and other signs removed:
https://github.com/HumanSignal/label-studio/blob/develop/label_studio/data_import/models.py ,
https://docs.djangoproject.com/en/stable/ref/utils/#django.utils.text.get_valid_filename ; files of a local storage are
``/data/local-files/?d=PATH``: https://labelstud.io/guide/storage#Local-storage
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from ...runtime.video import is_video_name

_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
_YOUTUBE = re.compile(r"(?:v_)?([\w-]{11})")
_DOWNLOADED = re.compile(r".*(?:-|\[)(?P<id>[\w-]{11})\]?")  # TITLE-ID of youtube-dl, TITLE [ID] of yt-dlp
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class NameMatch:
    """The file that a name means. ``path`` is empty where there is none, or several: ``candidates``."""

    name: str  # the tool's
    path: str  # relative to the folder, with slashes
    how: str  # in words; empty where name and path are the same
    candidates: tuple[str, ...] = ()


def looks_like_video(name: str) -> bool:
    """True where a path or an address ends like a video file's name."""
    return is_video_name(external_path(name))


def external_path(name: str) -> str:
    """Return the path in a name: of an address without query, of a Windows path with slashes."""
    text = name.strip()
    if "://" in text or text.startswith("/data/local-files/"):
        try:
            parts = urlsplit(text)
            query = parse_qs(parts.query)
        except ValueError:
            return text
        if parts.path.rstrip("/").endswith("/local-files") and query.get("d"):
            text = query["d"][0]
        elif query.get("v") and parts.path.rstrip("/").endswith("/watch"):
            text = query["v"][0]
        else:
            text = unquote(parts.path)
    text = text.replace("\\", "/")
    return _DRIVE.sub("", text, count=1) if _DRIVE.match(text) else text


class VideoNames:
    """The videos of a folder by their names."""

    def __init__(self, paths: Iterable[str]) -> None:
        """``paths``: relative to the folder, with slashes."""
        self._paths = sorted(paths)
        self._tables: dict[tuple[Callable[[str], str], bool], dict[str, list[str]]] = {}

    def match(self, name: str) -> NameMatch:
        """Return the file that ``name`` means."""
        text = external_path(name)
        if text in self._table(_same, whole=True):
            return NameMatch(name, text, "")
        for how, form, key in _steps(PurePosixPath(text).name):
            found = self._nearest(text, self._table(form).get(key, [])) if key else []
            if form is _same and len(found) == 1 and "/" in text and not _agreement(_folders(text), found[0]):
                found = self._nearest(text, self._table(_folded).get(_folded(key), []))  # one of another case may agree
                found = [*dict.fromkeys([*found, *self._table(form)[key]])]
            if len(found) == 1:
                return NameMatch(name, found[0], how)
            if found:
                return NameMatch(name, "", how, tuple(found))
        return NameMatch(name, "", "")

    def _table(self, form: Callable[[str], str], *, whole: bool = False) -> dict[str, list[str]]:
        """Return the paths by a form of their names, or of themselves."""
        if (form, whole) not in self._tables:
            table: dict[str, list[str]] = defaultdict(list)
            for path in self._paths:
                table[form(path if whole else PurePosixPath(path).name)].append(path)
            self._tables[form, whole] = dict(table)
        return self._tables[form, whole]

    @staticmethod
    def _nearest(text: str, found: list[str]) -> list[str]:
        """Return those files whose folders agree best with the folders of the name."""
        if len(found) < 2:
            return found
        agreeing = [_agreement(_folders(text), path) for path in found]
        best = max(agreeing)
        if best == 0:
            return found
        return [path for path, count in zip(found, agreeing, strict=True) if count == best]


def _steps(wanted: str) -> list[tuple[str, Callable[[str], str], str]]:
    """Return the steps of a comparison: in words, the form of a file's name, and that of the wanted name."""
    upload = _UPLOAD.match(wanted)
    bare = wanted[upload.end() :] if upload else ""
    youtube = _YOUTUBE.fullmatch(wanted if not is_video_name(wanted) else PurePosixPath(wanted).stem)
    whole = is_video_name(wanted)
    return [
        ("by its name", _same, wanted),
        ("in another case", _folded, _folded(wanted)),
        ("without the suffix", _folded_stem, "" if whole else _folded(wanted)),
        ("without the prefix of an upload", _same, bare),
        ("without the prefix of an upload, blanks as _", _cleaned, bare and _cleaned(bare)),
        ("with blanks as _", _cleaned, _cleaned(wanted)),
        ("with another suffix", _folded_stem, _folded_stem(wanted) if whole else ""),
        ("without the prefix of an upload, with another suffix", _cleaned_stem, bare and _cleaned_stem(bare)),
        ("by YouTube's identifier", _youtube_of, youtube[1] if youtube else ""),
    ]


def _same(name: str) -> str:
    return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _stem(name: str) -> str:
    return PurePosixPath(name).stem if is_video_name(name) else name


def _folded_stem(name: str) -> str:
    return _folded(_stem(name))


def _cleaned(name: str) -> str:
    """Return a name as Django stores an upload, in one case."""
    return re.sub(r"[^-\w.]", "", _folded(name).strip().replace(" ", "_"))


def _cleaned_stem(name: str) -> str:
    return _cleaned(_stem(name))


def _youtube_of(name: str) -> str:
    stem = _stem(name)
    match = _YOUTUBE.fullmatch(stem)
    if match:
        return match[1]
    downloaded = _DOWNLOADED.fullmatch(stem)
    return downloaded["id"] if downloaded else ""


def _folders(text: str) -> list[str]:
    return [_folded(part) for part in PurePosixPath(text).parts[:-1]]


def _agreement(folders: list[str], path: str) -> int:
    """Return how many folders agree, from the file up."""
    count = 0
    for one, other in zip(reversed(folders), reversed(PurePosixPath(path).parts[:-1]), strict=False):
        if one != _folded(other):
            break
        count += 1
    return count
