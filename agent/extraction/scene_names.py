"""Find the person or scene in a clip's file name: the rule ``auto`` of groups.py.

Known data sets' names come first, then a person that the name numbers (``subject-03_…``, ``S02``), then the folders
inside the class's folder, and last the name without what only counts, describes or repeats the label at its end:
``lena_run2`` is of ``lena``, ``fall-01-cam0`` of ``fall-01``. A rest that names no scene (``walk_001``, ``clip_17``,
``cam1_0004``) does not count: then the whole name is the group.
"""

from __future__ import annotations

import functools
import re
from enum import Enum, auto
from itertools import pairwise

from .aliases import root
from .scene_words import CONTAINERS, COUNTER_LETTERS, EMPTY, GENERIC, PIECES, VIEWS

# UCF101 https://www.crcv.ucf.edu/data/UCF101.php,
# HMDB51 https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/,
# Kinetics https://github.com/cvdfoundation/kinetics-dataset,
# UT-Interaction https://cvrc.ece.utexas.edu/SDHA2010/
UCF101 = re.compile(r"v_(?P<action>.+)_g(?P<group>\d+)_c\d+")
HMDB51 = re.compile(r"(?P<source>.+)_[fhlu]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+")
KINETICS = re.compile(r"(?P<video>[\w-]{11})_\d{6}_\d{6}")
UT_INTERACTION = re.compile(r"(?P<set>set\d+)_\d+_(?P<sequence>\d+)_\d+")
# NTU RGB+D: setup, camera, performer, replication, action. https://rose1.ntu.edu.sg/dataset/actionRecognition/
NTU = re.compile(r"S\d{3}C\d{3}(?P<performer>P\d{3})R\d{3}A\d{3}(?:_.*)?")
# A GoPro's files: chapter, then the recording's number.
# https://community.gopro.com/s/article/GoPro-Camera-File-Naming-Convention
GOPRO = re.compile(r"(?:(?P<codec>G[HXLS])\d{2}|GOPR|GP\d{2})(?P<recording>\d{4})(?:[\s_(-].*)?")
# A piece of a YouTube video: its id of 11 characters, then numbers.
YOUTUBE_PIECE = re.compile(r"(?:v_)?(?P<video>[\w-]{11})_\d{1,6}(?:_\d{1,6})?")

PERSON = re.compile(
    r"(?:(?<![^\W\d_])|(?-i:(?<=[a-z])(?=[A-Z])))(?P<word>person|subject|subj|sub|patient|pat|participant|actor|proband|"
    r"probandin|patientin|resident|volunteer|user|child|player|vp|sujet|persona|paciente|personne|id|pid|case|client|performer|individual|bewohner|"
    r"bewohnerin|caso)"
    r"[\s_.#-]?(?:(?P<number>[0-9]+)|(?P<letter>(?-i:[A-Z]))(?![^\W_]))",
    re.IGNORECASE,
)
DATE = r"(?<!\d)(?:19|20)\d\d(?P<s>[-_.]?)(?:0[1-9]|1[0-2])(?P=s)(?:0[1-9]|[12]\d|3[01])"
TIME = r"(?:[01]\d|2[0-3])[-_.:h]?[0-5]\d[-_.:m]?[0-5]\d\d{0,3}(?!\d)"
MOMENT = re.compile(rf"{DATE}(?:[\sT_.-]|_?at)*{TIME}", re.IGNORECASE)
DAY = re.compile(rf"{DATE}(?!\d)")
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
TOKEN = re.compile(r"[^\s_.()\[\]{}+,#~-]+")
SHORT_PERSON = re.compile(r"(?P<word>[SPsp])(?P<number>[0-9]{1,3})")
WORD_AND_NUMBER = re.compile(r"(?P<word>[^\W\d_]+)(?P<number>[0-9]+)")
CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\dA-Z_]+|[0-9]+")

FORMAT = re.compile(
    r"(?:\d{3,4}[pi]|p(?:240|360|480|540|720|1080|1440|2160)|\d{1,3}fps|\d+hz|\dk|\d{2,5}x\d{2,5}|[hx]26[45])",
    re.IGNORECASE,
)


class Kind(Enum):
    """Meaning of a part of a name."""

    ID = auto()  # says which scene: s01, alba1, a moment, a UUID
    NUMBER = auto()  # a counter, or which one of several
    PIECE = auto()  # a counter with its word: take2; alone it says which recording
    LABEL_NUMBER = auto()  # run2
    WORD = auto()  # may be a scene's name
    LABEL = auto()
    DAY = auto()
    LEFT_OUT = auto()  # a view, a container, a generic word


STRIPPED = frozenset({Kind.NUMBER, Kind.PIECE, Kind.LABEL_NUMBER, Kind.LABEL, Kind.LEFT_OUT})


def known_data_set(stem: str, label: str | None) -> str | None:
    """Return the scene or performer in a file name of a known data set; None for another name.

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
    return None


def person_in(name: str) -> str | None:
    """Return the person that a name numbers, in one spelling: ``Subject_03`` and ``subject3`` -> ``subject3``."""
    if match := PERSON.search(name):
        which = match["letter"] or str(int(match["number"]))
        return match["word"].lower() + which
    return None


def short_person_in(stem: str, label: str | None) -> str | None:
    """Return the one subject of a name with a short id: ``Lie_01_S02`` -> ``s2``, ``P03_cam01`` -> ``p3``."""
    words = _label_words(label or "")
    found = {
        match["word"].lower() + str(int(match["number"]))
        for token in TOKEN.findall(stem)
        if token.lower() not in words and not FORMAT.fullmatch(token) and (match := SHORT_PERSON.fullmatch(token))
    }
    return found.pop() if len(found) == 1 else None


def recording_in(stem: str) -> str | None:
    """Return performer or recording in the names of NTU RGB+D, GoPro cameras and pieces of YouTube videos."""
    if match := NTU.fullmatch(stem):
        return match["performer"]
    if match := GOPRO.fullmatch(stem):
        return (match["codec"] or "GOPR") + match["recording"]
    if (match := YOUTUBE_PIECE.fullmatch(stem)) and _is_random(match["video"]):
        return match["video"]
    return None


def scene_in(stem: str, label: str | None) -> str | None:
    """Return the shortest beginning of a name that says which scene it is of; None where only the whole name does."""
    tokens = list(TOKEN.finditer(stem))
    kinds = _kinds(stem, tokens, label)
    labels = [place for place, kind in enumerate(kinds) if kind in (Kind.LABEL, Kind.LABEL_NUMBER)]
    best, numbers, kept = None, 0, list(kinds)
    while len(kept) > 1:
        last = kept[-1]
        if last not in STRIPPED or (last is Kind.NUMBER and numbers):
            break
        numbers += last is Kind.NUMBER
        kept.pop()
        if _identifies(kept, label=labels[0] if labels else 0):
            best = stem[: tokens[len(kept) - 1].end()]
    return best


def is_scene_word(name: str) -> bool:
    """True for a folder's name that may be of a person or scene, such as ``anna``; False for ``cam1`` or ``part 2``."""
    tokens = list(TOKEN.finditer(name))
    kinds = _kinds(name, tokens, None)
    return Kind.WORD in kinds or _identifies(kinds, label=0)


def is_scene_name(name: str) -> bool:
    """True for the name of a folder over the classes that may be a person's: ``anna``, ``007``; not ``ward-3``."""
    kinds = _kinds(name, list(TOKEN.finditer(name)), None)
    return Kind.WORD in kinds or Kind.ID in kinds or (bool(kinds) and set(kinds) == {Kind.NUMBER})


def _identifies(kinds: list[Kind], *, label: int) -> bool:
    """True where parts of a name say which scene: an id or a number does, a word only before the label or with a day.

    ``label``: place of the label in the whole name, 0 without one.
    """
    if any(kind in (Kind.ID, Kind.NUMBER, Kind.PIECE, Kind.LABEL_NUMBER) for kind in kinds):
        return True
    return Kind.WORD in kinds[:label] or (Kind.WORD in kinds and Kind.DAY in kinds)


def _kinds(stem: str, tokens: list[re.Match[str]], label: str | None) -> list[Kind]:
    moments = [match.span() for pattern in (UUID, MOMENT) for match in pattern.finditer(stem)]
    days = [match.span() for match in DAY.finditer(stem)]
    words = _label_words(label or "")
    kinds = []
    for token in tokens:
        if _is_in(token, moments):
            kinds.append(Kind.ID)
        elif _is_in(token, days):
            kinds.append(Kind.DAY)
        elif not kinds and len(token[0]) == 1 and token[0].isalpha():  # a person's letter, not an article
            kinds.append(Kind.WORD)
        else:
            kinds.append(_kind(token[0], words))
    return kinds


def _is_in(token: re.Match[str], spans: list[tuple[int, int]]) -> bool:
    return any(start < token.end() and token.start() < end for start, end in spans)


@functools.lru_cache(maxsize=65_536)
def _kind(token: str, label: frozenset[str]) -> Kind:
    lower = token.lower()
    if lower in label or root(lower) in label:
        return Kind.LABEL
    if token.isascii() and token.isdigit():
        if len(token) == 4 and token[:2] in ("19", "20"):
            return Kind.DAY
        return Kind.NUMBER if len(token) <= 5 or token.startswith("00") else Kind.ID
    if lower in EMPTY or FORMAT.fullmatch(lower):
        return Kind.LEFT_OUT
    if match := WORD_AND_NUMBER.fullmatch(token):
        return _kind_with_number(match["word"], label)
    if token.isalpha():
        return _kind_of_words(token, label)
    return Kind.ID


def _kind_with_number(word: str, label: frozenset[str]) -> Kind:
    lower = word.lower()
    if lower in label or root(lower) in label or _kind_of_words(word, label) is Kind.LABEL:
        return Kind.LABEL_NUMBER
    if lower in PIECES or lower in GENERIC:
        return Kind.PIECE
    if lower in VIEWS or lower in CONTAINERS or lower in COUNTER_LETTERS:
        return Kind.LEFT_OUT
    return Kind.ID


def _kind_of_words(token: str, label: frozenset[str]) -> Kind:
    """Return the kind of letters, which may be words as in ``SlowWalk``."""
    parts = [part.lower() for part in CAMEL.findall(token)]
    of_label = [part in label or root(part) in label for part in parts]
    left_out = [part in EMPTY for part in parts]
    if parts and all(first or second for first, second in zip(of_label, left_out, strict=True)):
        return Kind.LABEL if any(of_label) else Kind.LEFT_OUT
    return Kind.WORD


@functools.lru_cache(maxsize=4096)
def _label_words(label: str) -> frozenset[str]:
    """Return the words of a label, and those without their endings, also written as one."""
    words = [part.lower() for token in TOKEN.findall(label) for part in (*CAMEL.findall(token), token)]
    joined = "".join(TOKEN.findall(label)).lower()
    return frozenset(form for word in (*words, joined) if word for form in (word, root(word)))


def _is_random(text: str) -> bool:
    """True for what looks like a YouTube id: upper and lower case mixed with digits or with each other."""
    changes = sum(first.islower() and second.isupper() for first, second in pairwise(text))
    has = (any(map(str.isupper, text)), any(map(str.islower, text)), any(map(str.isdigit, text)) or changes > 1)
    return all(has)
