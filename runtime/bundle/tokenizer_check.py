"""The check that a bundle's ``tokenizer.json`` passes before it is used, as graph_check.py is that of its graphs.

The library's format has parts that multiply text (twenty replacements of one letter by two make a million of it), parts
that run patterns of the file's own, and parts that panic. A caption needs none: words are looked up, and joined.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...base.errors import DataError, MissingExtra, printable

if TYPE_CHECKING:
    import tokenizers

_ALLOWED = {  # kinds of each part; all but the model may be missing
    "model": ("WordPiece", "WordLevel"),
    "normalizer": ("BertNormalizer", "Lowercase"),
    "pre_tokenizer": ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"),
    "post_processor": ("BertProcessing", "TemplateProcessing"),
    "decoder": ("WordPiece",),
}
_KEPT = ("version", "added_tokens", *_ALLOWED)  # truncation and padding are the runtime's own
MAX_TOKENS = 1_000_000  # BERT has 30,522
MAX_ADDED = 10_000
MAX_TOKEN = 200  # characters


def open_tokenizer(data: bytes, shown: str) -> tokenizers.Tokenizer:
    """The tokenizer in the bytes of a ``tokenizer.json``, called ``shown`` in messages, without padding and truncation.

    Raises DataError: ``bad_tokenizer`` when it is none, or has parts that a caption does not need; MissingExtra.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", extra="agent") from error
    try:
        parts = _checked(json.loads(data))
        # What was checked is what the library reads: readers differ in which of two equal names they take.
        return Tokenizer.from_str(json.dumps({name: parts.get(name) for name in _KEPT}))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises plain Exception; its panics are not even that
        reason = "nested too deeply" if isinstance(error, RecursionError) else printable(str(error))[:300]
        raise DataError(
            f"{shown} is not a tokenizer that may run: {reason}",
            fix="get the bundle again from its operator, or export it again with flamest-export",
            code="bad_tokenizer",
        ) from error


def _checked(parts: Any) -> dict[str, Any]:
    """Return the parts of a tokenizer; raise ValueError unless all are allowed."""
    if not isinstance(parts, dict):
        raise ValueError("it is not a JSON object")
    for name, kinds in _ALLOWED.items():
        part = parts.get(name)
        if part is None and name != "model":
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            raise ValueError(f"its {name} is {str(kind)[:40]!r}, expected {' or '.join(kinds)}")
    words, added = parts["model"].get("vocab"), parts.get("added_tokens") or []
    if not isinstance(words, dict) or not isinstance(added, list):
        raise ValueError("it has no vocabulary")
    if len(words) > MAX_TOKENS or len(added) > MAX_ADDED:
        raise ValueError(
            f"it has {len(words)} tokens and {len(added)} more, expected at most {MAX_TOKENS} and {MAX_ADDED}"
        )
    texts = [*words, *(token.get("content") if isinstance(token, dict) else None for token in added)]
    if any(not isinstance(text, str) or len(text) > MAX_TOKEN for text in texts):
        raise ValueError(f"a token is not text of at most {MAX_TOKEN} characters")
    return parts
