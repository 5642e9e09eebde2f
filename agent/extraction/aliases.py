"""This silo's words for the run's classes (``[labels.alias]`` of agent.toml), and classes that a word may have meant.

An alias applies where labels meet a run or a model: in training, evaluation and the notes of a check. The store and
labels.csv keep the silo's own words.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MOST_NEAR = 3  # classes that are named for a word
LEAST_ALIKE = 0.75  # of difflib's ratio

_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class LabelAliases:
    """The run's class for each of this silo's words; a word without an alias is its own."""

    words: Mapping[str, str] = field(default_factory=dict)

    def of(self, label: str) -> str:
        return self.words.get(label, label)

    def all_of(self, labels: Iterable[str | None]) -> list[str | None]:
        """Return each label as the run calls it; None stays None."""
        return [None if label is None else self.of(label) for label in labels]


NO_ALIASES = LabelAliases()


def alias_problems(words: Mapping[str, str]) -> list[str]:
    """Return what is wrong with aliases, a sentence each."""
    problems = [f"{word!r}: expected a word and the run's class" for word, to in words.items() if not word or not to]
    for word, to in words.items():
        if to in words and words[to] != to:
            problems.append(f"{word!r} is {to!r}, which is itself an alias of {words[to]!r}: name the run's class")
    return problems


def toml_text(text: str) -> str:
    """Return ``text`` as a quoted string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def near_misses(label: str, vocabulary: Sequence[str]) -> list[str]:
    """Return classes that ``label`` may mean, likeliest first, at most 3; none where it is a class itself.

    Case, separators, word order and the endings of words do not count (``Fall_Down``, ``falling down``); then spelling
    (``wavng``), by the ratio of Python's difflib.
    """
    if label in vocabulary:
        return []
    wanted = _form(label)
    if not wanted:
        return []
    forms = {known: _form(known) for known in vocabulary}
    same = [known for known, form in forms.items() if form == wanted]
    words = sorted(wanted.split())
    turned = [known for known, form in forms.items() if known not in same and sorted(form.split()) == words]
    scores = {
        known: difflib.SequenceMatcher(None, wanted, form).ratio()
        for known, form in forms.items()
        if known not in same and known not in turned
    }
    alike = sorted((known for known in scores if scores[known] >= LEAST_ALIKE), key=lambda known: -scores[known])
    return [*same, *turned, *alike][:MOST_NEAR]


def _form(label: str) -> str:
    """Return the words of a label in lower case, without accents and endings."""
    plain = "".join(
        letter for letter in unicodedata.normalize("NFKD", _CAMEL.sub(" ", label)) if not unicodedata.combining(letter)
    )
    return " ".join(root(word) for word in _WORD.findall(plain.casefold()))


def root(word: str) -> str:
    """Return a verb without its ending: walk, walks, walking, walked -> walk; wave, waving -> wav."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
