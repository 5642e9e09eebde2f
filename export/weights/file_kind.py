"""Files that came in place of weights: a web page, a Git LFS pointer, nothing, or half of the weights."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

HEAD = 512  # bytes that are looked at
_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP = b"PK\x03\x04"
_SMALLEST = 16  # bytes of any weights file


def looks_like_page(head: bytes) -> bool:
    """Return True for the beginning of a web page."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE)


def not_weights(file: BinaryIO, size: int) -> str:
    """Return what the open file of ``size`` bytes is in place of weights, as ``is a web page …``; empty for weights.

    Leaves the file at its beginning.
    """
    file.seek(0)
    head = file.read(HEAD) or b""
    file.seek(0)
    if size < _SMALLEST:
        return f"has {size} bytes: nothing, or next to nothing, arrived"
    if looks_like_page(head):
        return "is a web page: a proxy or a login page answered in place of the server"
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, 130 bytes that name the weights: the repository was cloned without Git LFS"
    if head.startswith(_ZIP) and not _ends_as_zip(file):
        return f"is cut short after {size:,} bytes: only a part of it arrived"
    return ""


def _ends_as_zip(file: BinaryIO) -> bool:
    found = zipfile.is_zipfile(file)
    file.seek(0)
    return found
