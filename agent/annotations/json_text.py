"""JSON of other tools, decoded within limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...base.errors import DataError

MAX_JSON = 128 << 20  # bytes
MAX_BRACKETS = 4_000_000  # lists and objects


class RepeatedKeys(dict[str, Any]):
    """An object that has a key twice; the last value of each is kept. ``repeated``: the keys."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = (
            sorted({name for name in names if names.count(name) > 1}) if len(names) < 1000 else _twice(names)
        )


def _twice(names: list[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def decode_json(content: bytes, name: str) -> Any:
    """Decode a JSON document. NaN and infinity are floats, for the reader of the entry to refuse.

    Raises DataError ``annotations_json``; ``name`` is the file's, for the message.
    """
    problem = ""
    if len(content) > MAX_JSON or content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
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
