"""Rules that give a clip its class and its group where labels.csv does not (``[labels]``, ``[groups]`` of agent.toml).

Clips of one group are held out together. Group and class depend on the clip's own path and row alone, never on other
clips: with record-dp a clip that comes or goes must not move another one.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from .scene_names import (
    is_scene_name,
    is_scene_word,
    known_data_set,
    person_in,
    recording_in,
    scene_in,
    short_person_in,
)

RuleName = Literal["auto", "name", "folder", "suffix", "pattern"]
LabelFolder = Literal["parent", "top"]
RULE_WORDS: dict[RuleName, str] = {
    "auto": "the person or scene in the name",
    "name": "the file's name",
    "folder": "the folders other than the class's",
    "suffix": "the name without the number at its end",
    "pattern": "the pattern's group",
}
# Folders above the classes' that say which part of a data set a clip is in.
SPLIT_FOLDERS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
SUFFIX = re.compile(r"[\s_.-]*(?:\([0-9]+\)|[0-9]+)$")


@dataclass(frozen=True)
class GroupRule:
    """``[groups]`` of agent.toml."""

    rule: RuleName = "auto"
    pattern: str = ""  # of the rule "pattern": a regular expression with (?P<group>…), searched for in the clip's path


@dataclass(frozen=True)
class ClipRules:
    """Settings that decide a clip's group and class."""

    groups: GroupRule = field(default_factory=GroupRule)
    label_folder: LabelFolder = "parent"  # the folder that is the class: the clip's own, or the outermost

    def label_of(self, folders: tuple[str, ...]) -> str | None:
        """Return the class of a clip in ``folders`` (from the outermost); None for a clip in none."""
        return class_folder(folders, self.label_folder)


DEFAULT_RULES = ClipRules()


def class_folder(folders: tuple[str, ...], which: LabelFolder) -> str | None:
    """Return the folder that is the class: the innermost, or the outermost that is no split (train, test, val)."""
    if not folders:
        return None
    if which == "parent":
        return folders[-1]
    return next((folder for folder in folders if folder.casefold() not in SPLIT_FOLDERS), folders[-1])


def group_of(path: str, label: str | None, rule: GroupRule) -> str:
    """Return the group of the clip at ``path`` (relative to the videos' folder, with slashes), never empty."""
    stem = PurePosixPath(path).stem
    if rule.rule == "auto":
        return _auto(path, stem, label)
    if rule.rule == "folder":
        return "/".join(_other_folders(path, label)) or stem
    if rule.rule == "suffix":
        return SUFFIX.sub("", stem) or stem
    if rule.rule == "pattern":
        match = _compiled(rule.pattern).search(path)
        return (match["group"] if match else "") or stem
    return stem


def default_group(stem: str, label: str | None) -> str:
    """Return the group of a name without folders: the rule ``auto``."""
    return _auto(stem, stem, label)


def pattern_problem(pattern: str) -> str:
    """Return why a pattern cannot be used, as a sentence; empty when it can."""
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"{pattern!r} is not a regular expression: {error}"
    if "group" not in compiled.groupindex:
        return f"{pattern!r} has no (?P<group>…), expected one, like '(?P<group>person[0-9]+)'"
    return ""


def matches_pattern(path: str, rule: GroupRule) -> bool:
    """True unless the rule is a pattern that does not match ``path``: the group is then the file's name."""
    if rule.rule != "pattern":
        return True
    match = _compiled(rule.pattern).search(path)
    return match is not None and bool(match["group"])


def _auto(path: str, stem: str, label: str | None) -> str:
    if (known := known_data_set(stem, label)) is not None:
        return known
    folders = _other_folders(path, label)
    for name in (stem, *reversed(folders)):
        if person := person_in(name):
            return person
    if found := recording_in(stem) or short_person_in(stem, label):
        return found
    inside = [folder for folder in _inside_class(path, label) if is_scene_word(folder)]
    if found := "/".join(inside) or scene_in(stem, label):
        return found
    above = _above_class(path, label)
    return "/".join(filter(is_scene_name, above)) or "/".join((*above, stem))


def _other_folders(path: str, label: str | None) -> list[str]:
    """Return the folders of a path other than the class's and a split's."""
    folders = PurePosixPath(path).parts[:-1]
    return [folder for folder in folders if folder != label and folder.casefold() not in SPLIT_FOLDERS]


def _inside_class(path: str, label: str | None) -> tuple[str, ...]:
    """Return the folders between the class's folder and the file."""
    folders = PurePosixPath(path).parts[:-1]
    return folders[folders.index(label) + 1 :] if label in folders else ()


def _above_class(path: str, label: str | None) -> tuple[str, ...]:
    """Return the folders between a split, or the root, and the class's: ``anna`` of ``UCF/train/anna/walk/1.mp4``."""
    folders = PurePosixPath(path).parts[:-1]
    above = folders[: folders.index(label)] if label in folders else ()
    splits = [place for place, folder in enumerate(above) if folder.casefold() in SPLIT_FOLDERS]
    return above[splits[-1] + 1 :] if splits else above


@functools.lru_cache(maxsize=8)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
