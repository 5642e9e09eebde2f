"""Rules that give a clip its group where labels.csv does not: clips of one group are held out together.

A group depends on the clip's own name and label alone, never on other clips: with record-dp a clip that comes or goes
must not move others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

RuleName = Literal["auto", "name", "folder", "suffix", "pattern"]
RULES: tuple[RuleName, ...] = ("auto", "name", "folder", "suffix", "pattern")

# Folders above the classes' that say which part of a data set a clip is in.
SPLIT_FOLDERS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})

UCF101 = re.compile(r"v_(?P<action>.+)_g(?P<group>\d+)_c\d+")
HMDB51 = re.compile(r"(?P<source>.+)_[fhlu]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+")
KINETICS = re.compile(r"(?P<video>[\w-]{11})_\d{6}_\d{6}")
UT_INTERACTION = re.compile(r"(?P<set>set\d+)_\d+_(?P<sequence>\d+)_\d+")


@dataclass(frozen=True)
class GroupRule:
    """``[groups]`` of agent.toml."""

    rule: RuleName = "auto"
    pattern: str = ""  # of the rule "pattern": a regular expression with (?P<group>…), searched in the clip's path


@dataclass(frozen=True)
class ClipRules:
    """Settings that decide a clip's group and label."""

    groups: GroupRule = field(default_factory=GroupRule)
    label_folder: Literal["parent", "top"] = "parent"  # the folder that is the class

    def label_of(self, folders: tuple[str, ...]) -> str | None:
        """Return the class of a clip in ``folders`` (from the outermost); None for a clip in none."""
        if not folders:
            return None
        if self.label_folder == "parent":
            return folders[-1]
        return next((folder for folder in folders if folder.casefold() not in SPLIT_FOLDERS), folders[-1])


DEFAULT_RULES = ClipRules()


def group_of(path: str, label: str | None, rule: GroupRule) -> str:
    """Return the group of the clip at ``path`` (relative to the videos' folder, with slashes)."""
    return default_group(PurePosixPath(path).stem, label)


def default_group(stem: str, label: str | None) -> str:
    """Return the scene in a file name of a known data set, or else the name itself.

    UCF101 ``v_Punch_g23_c01`` -> ``Punch_g23``; HMDB51 ``TITLE_punch_f_cm_np1_fr_med_0`` -> ``TITLE``
    (clips cut from one video); Kinetics ``VIDEOID12345_000010_000020`` -> ``VIDEOID12345``; UT-Interaction
    ``set1_26_5_2`` -> ``set1_5`` (a sequence holds every action once).
    """
    if match := UCF101.fullmatch(stem):
        return f"{match['action']}_g{match['group']}"
    if match := HMDB51.fullmatch(stem):
        return match["source"].removesuffix(f"_{label}") or stem
    if match := KINETICS.fullmatch(stem):
        return match["video"]
    if match := UT_INTERACTION.fullmatch(stem):
        return f"{match['set']}_{match['sequence']}"
    return stem
