"""JSON of other tools, decoded within limits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...base.errors import DataError

MAX_JSON = 128 << 20  # bytes
MAX_BRACKETS = 4_000_000  # lists and objects
MAX_COMMAS = 12_000_000  # between values; those in texts count too


class RepeatedKeys(dict[str, Any]):
    """An object that has a key twice; the last value of each is kept. ``repeated``: the keys."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.repeated = sorted(name for name, count in counts.items() if count > 1)


def decode_json(content: bytes, name: str) -> Any:
    """Decode a JSON document. NaN and infinity are floats, for the reader of the entry to refuse.

    Raises DataError ``annotations_json``, or ``too_large`` before it is decoded; ``name`` is the file's, for messages.
    """
    problem = ""
    if (
        len(content) > MAX_JSON
        or content.count(b"[") + content.count(b"{") > MAX_BRACKETS
        or content.count(b",") > MAX_COMMAS
    ):
        raise DataError(
            f"{name} is larger than an annotation file can be",
            fix="export fewer tasks or videos at once",
            code="too_large",
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        problem = "is UTF-16 text, expected UTF-8"
    else:
        try:
            return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 text: {error.reason}"
        except json.JSONDecodeError as error:
            problem = f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        except RecursionError:
            problem = "is nested deeper than any annotation file"
        except ValueError:
            problem = "holds a number of too many digits"
    raise DataError(
        f"{name} {problem}", fix="export it again from the tool, and do not edit it by hand", code="annotations_json"
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else RepeatedKeys(pairs)
