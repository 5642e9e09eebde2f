"""The forms of a fingerprint: of a bundle, 64 hexadecimal digits; of imported embeddings, ``imported:NAME:D``.

A fingerprint says what an embedding means; a run trains on embeddings of exactly one.
"""

from __future__ import annotations

import re

from .bounds import MAX_WIDTH

_BUNDLE = re.compile(r"[0-9a-f]{64}")
_IMPORTED = re.compile(r"imported:[a-z0-9][a-z0-9._-]{0,63}:(?P<width>[1-9][0-9]{0,5})")


def imported_width(fingerprint: str) -> int | None:
    """Return the width that a fingerprint of imported embeddings names; None for a bundle's, which names none."""
    found = _IMPORTED.fullmatch(fingerprint)
    return int(found["width"]) if found else None


def fingerprint_problem(fingerprint: str) -> str:
    """Return why no silo can have embeddings of this fingerprint; empty when one can."""
    width = imported_width(fingerprint)
    if _BUNDLE.fullmatch(fingerprint) or (width is not None and width <= MAX_WIDTH):
        return ""
    return "expected a bundle's 64 hexadecimal digits, or imported:NAME:WIDTH for embeddings of your own"
