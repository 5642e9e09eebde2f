"""An annotation file of any known format, recognised by its content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...base.errors import DataError
from ...base.files import open_regular, printable_path, read_regular
from .activitynet import read_activitynet
from .annotation import AnnotationFile
from .cvat import CvatOptions, read_cvat
from .json_text import MAX_JSON, decode_json
from .label_studio import read_label_studio
from .segments_table import FIX_TABLE, read_segments
from .xml_events import MAX_XML
from .zip_member import open_member

Format = Literal["activitynet", "segments", "cvat", "label-studio"]
FORMATS: tuple[Format, ...] = ("activitynet", "segments", "cvat", "label-studio")
MAX_TABLE = 256 << 20  # bytes
MAX_ZIP = 64 << 30  # bytes: with the images of all frames
_FIX = "give a file of one of these: " + ", ".join(FORMATS) + "; --format names it where it is not recognised"


@dataclass(frozen=True)
class ReadingOptions:
    """Options that a person gives. ``format`` None: recognised by the content."""

    format: Format | None = None
    label_attribute: str = ""  # CVAT: the attribute whose value is the label
    video: str = ""  # CVAT: name of the video of a file that names none
    choices: str = ""  # Label Studio, JSON-MIN: the control of whole videos' labels


DEFAULT_OPTIONS = ReadingOptions()


def read_annotations(path: Path, options: ReadingOptions = DEFAULT_OPTIONS) -> AnnotationFile:
    """Read an annotation file.

    Raises DataError where the file is none of the formats: ``annotations_format``, ``annotations_json``,
    ``annotations_xml``, ``annotations_zip``, ``annotations_table``, ``annotations_structure``, ``repeated_key``,
    ``too_large``, ``too_many``, ``not_a_file``; StorageError where it cannot be read.
    """
    name = printable_path(path)
    chosen = options.format or _recognise(path, name)
    if chosen == "cvat":
        return _read_cvat(path, name, CvatOptions(options.label_attribute, options.video))
    if chosen == "segments":
        return read_segments(read_regular(path, largest=MAX_TABLE), name)
    content = read_regular(path, largest=MAX_JSON)
    try:
        document = decode_json(content, name)
    except DataError as error:
        if other := _other_than_json(content, name, options.format):
            raise other from error
        raise
    if options.format is None:
        chosen = _json_format(document, name)
    if chosen == "activitynet":
        return read_activitynet(document, name)
    return read_label_studio(document, name, choices=options.choices)


def _recognise(path: Path, name: str) -> Format:
    """Return the format that the first bytes belong to; of JSON documents ``label-studio``, to be looked at again."""
    with open_regular(path) as file:
        head = file.read(4096)
    if head.startswith(b"PK\3\4") or head.startswith(b"PK\5\6"):
        return "cvat"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and b"<" not in head[:4]:
        raise DataError(f"{name} is UTF-16 text, expected UTF-8", fix="save it as UTF-8", code="annotations_format")
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if not text:
        raise DataError(f"{name} is empty", fix=_FIX, code="annotations_format")
    if "<" in text[:3]:  # also of UTF-16, which begins with a mark
        return "cvat"
    if text[0] in "{[":
        return "label-studio"
    line = text.splitlines()[0]
    if any(mark in line for mark in ",;\t") and "\0" not in line:
        return "segments"
    raise DataError(f"{name} is neither JSON, XML, a .zip nor a table", fix=_FIX, code="annotations_format")


def _other_than_json(content: bytes, name: str, wanted: Format | None) -> DataError | None:
    """Return the error of a file that is of another kind than the JSON that was wanted; None where it is damaged."""
    head = content[:4096].decode("utf-8-sig", errors="replace").lstrip()
    if wanted is None or not head or head[0] in "{[":
        return None
    tool = "ActivityNet's labels" if wanted == "activitynet" else "Label Studio's export"
    line = head.splitlines()[0]
    if head[0] != "<" and any(mark in line for mark in ",;\t"):
        table = "a table of video,label,start,end: --format segments"
        fix = f"{FIX_TABLE}; {table}" if wanted == "label-studio" else f"for {table}"
        return DataError(f"{name} is a table, and {tool} is read as JSON", fix=fix, code="annotations_json")
    return None


def _json_format(document: object, name: str) -> Format:
    if isinstance(document, dict):
        if "database" in document or "results" in document:
            return "activitynet"
        if "data" in document and ("annotations" in document or "completions" in document):
            return "label-studio"
    elif isinstance(document, list):
        return "label-studio"
    raise DataError(
        f"{name} is JSON, but neither ActivityNet's nor Label Studio's", fix=_FIX, code="annotations_format"
    )


def _read_cvat(path: Path, name: str, options: CvatOptions) -> AnnotationFile:
    with open_regular(path, largest=MAX_ZIP) as file:
        packed = file.read(4).startswith(b"PK")
        file.seek(0)
        if packed:
            with open_member(file, "annotations.xml", name) as read:
                return read_cvat(read, name, options)
    with open_regular(path, largest=MAX_XML) as file:
        return read_cvat(file.read, name, options)
