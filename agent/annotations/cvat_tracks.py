"""CVAT's tracks and frames to sightings: a label that is seen in a frame until a later one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from .annotation import Unusable, read_frame, read_label, read_name, shown

PERSON_ATTRIBUTES = ("person", "person_id", "subject", "patient")
UNDEFINED = "__undefined__"  # CVAT's value of an attribute that nobody has set


@dataclass
class Shape:
    """A shape of a track, or a tag or shape in an image."""

    frame: str | None
    outside: str
    attributes: dict[str, str] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)  # ``outside`` of a skeleton's elements


@dataclass(frozen=True)
class Sighting:
    """A label that is seen in a frame until a later one: half-open, in frames."""

    first: int
    end: int
    label: str
    person: str


def track_sightings(shapes: list[Shape], label: str, person: str, step: int, attribute: str) -> list[Sighting]:
    """Return the contiguous stretches of a track that are not outside, cut where its label or person changes.

    ``attribute``: one whose value is the label; empty: ``label``. Raises Unusable ``bad_track``, ``bad_frame``, or as
    ``read_label``.
    """
    if not shapes:
        raise Unusable("bad_track", "it has no shape")
    found: list[Sighting] = []
    before = -1
    seen: Sighting | None = None
    for shape in shapes:
        frame = read_frame(whole_number(shape.frame), "the frame")
        if frame <= before:
            raise Unusable("bad_track", f"frame {frame} comes after frame {before}")
        if shape.outside not in ("0", "1"):
            raise Unusable("bad_track", f"outside is {shown(shape.outside)} in frame {frame}, expected 0 or 1")
        before = frame
        now = None
        if shape.outside == "0" and shape.parts != {"1"} and not is_unset(shape, attribute):
            now = Sighting(frame, frame + step, label_of(shape, label, attribute), person_of(shape, person))
        if seen and now and (seen.label, seen.person) == (now.label, now.person):
            seen = replace(seen, end=now.end)
            continue
        if seen:
            found.append(replace(seen, end=frame))
        seen = now
    if seen:
        found.append(seen)
    if not found and attribute:
        raise Unusable("no_label", f"the attribute {shown(attribute)} has no value in any of its frames")
    if not found:
        raise Unusable("bad_track", "it is outside in every frame")
    return found


def is_unset(shape: Shape, attribute: str) -> bool:
    """True where the attribute that is the label has no value in a frame, or CVAT's word for none."""
    return bool(attribute) and shape.attributes.get(attribute, "").strip() in ("", UNDEFINED)


def label_of(shape: Shape, label: str, attribute: str) -> str:
    """Return the value of the attribute that is the label, or the label where there is none such. Raises Unusable."""
    if not attribute:
        return label
    value = shape.attributes.get(attribute)
    return read_label("" if value == UNDEFINED else value, what=f"the attribute {shown(attribute)}")


def person_of(shape: Shape, otherwise: str) -> str:
    """Return the person whom an attribute of the shape names. Raises Unusable for one that is no name."""
    names = {name.strip().casefold(): value for name, value in shape.attributes.items()}
    found = next((names[name] for name in PERSON_ATTRIBUTES if names.get(name, "").strip() not in ("", UNDEFINED)), "")
    return read_name(found, "the person") or otherwise


def whole_number(text: str | None) -> object:
    """Return the number that the text is; other text as it is, for the reader of the entry to refuse."""
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]{1,12}", text.strip()) else text


def frame_runs(frames: list[tuple[int, str]], step: int) -> list[tuple[int, int, str]]:
    """Return the runs of frames that follow each other: first, end, and where the first was found."""
    runs: list[tuple[int, int, str]] = []
    for frame, where in sorted(frames):
        if runs and frame <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], frame + step), runs[-1][2])
        else:
            runs.append((frame, frame + step, where))
    return runs


def some_named(items: list[tuple[str, bool, list[Sighting]]]) -> bool:
    """Return True where an attribute names the person in some of a video's items, and in others not."""
    named = {bool(seen.person) and not track for _, track, sightings in items for seen in sightings}
    return len(named) == 2


def persons_overlap(items: list[list[Sighting]]) -> bool:
    """Return True where two persons are seen at the same time: tracks, or names."""
    spans = sorted((seen.first, seen.end, seen.person) for seens in items for seen in seens if seen.person)
    end, owner = -1, ""
    for first, last, person in spans:
        if first < end and person != owner:
            return True
        if last > end:
            end, owner = last, person
    return False
