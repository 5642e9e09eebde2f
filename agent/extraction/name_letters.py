"""The letters that a label or another name may have: two names that look the same are then the same.

Names are shown, typed and compared: a letter that is not seen makes another class of the same word, and one that
changes the reading direction shows another word than is stored.
"""

from __future__ import annotations

import unicodedata

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # categories: control, format, half a pair, line and paragraph
# Not seen either, in other categories (DerivedCoreProperties.txt, Default_Ignorable_Code_Point; and Braille's blank).
UNSEEN_RANGES = (
    (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x2065, 0x2065), (0x2800, 0x2800), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF),
)  # fmt: skip
JOINERS = frozenset("\u200c\u200d\u180e")  # spelling of Persian, of Indian languages, of Mongolian
JOINED_FROM = "\u0590"  # the scripts before it, Latin among them, are spelled without joiners
VIRAMA = 9  # combining class: joiners may follow it at a word's end (RFC 5892, appendix A)


def name_problem(text: str) -> str:
    """Return what letter of a name it may not have, and where, as the end of a sentence; empty when there is none."""
    if text.isascii() and text.isprintable():
        return ""
    for place, letter in enumerate(text):
        if _is_unseen(letter) and not _joins(text, place):
            return (
                f"has a letter that is not seen or turns the reading direction, U+{ord(letter):04X} at place "
                f"{place + 1}: write it again without"
            )
    return ""


def _is_unseen(letter: str) -> bool:
    return unicodedata.category(letter) in UNSEEN or any(first <= ord(letter) <= last for first, last in UNSEEN_RANGES)


def _joins(text: str, place: int) -> bool:
    """True for a joiner that its script needs: between two letters, or after a virama."""
    if text[place] not in JOINERS or not place:
        return False
    before, after = text[place - 1], text[place + 1 : place + 2]
    return unicodedata.combining(before) == VIRAMA or (_is_joined(before) and _is_joined(after))


def _is_joined(letter: str) -> bool:
    return letter >= JOINED_FROM and unicodedata.category(letter)[0] in "LM"
