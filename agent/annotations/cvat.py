"""CVAT's XML, version 1.1, of video tasks: ``CVAT for video`` (tracks) and ``CVAT for images`` (tags of frames).

Schema: https://docs.cvat.ai/docs/dataset_management/formats/format-xml/ ; what is written:
https://github.com/cvat-ai/cvat/blob/develop/cvat/apps/dataset_manager/formats/cvat.py and bindings.py there.

- A frame's number is the video's own, from 0: ``start_frame`` + n · step, with the step of ``frame_filter``.
- A track lists its shapes frame by frame, the interpolated ones too (``keyframe="0"``). ``outside="1"`` is the first
  frame in which it is no longer there; between two listed frames it stays as the earlier one says. A track that is
  never ``outside`` ends with its last listed frame.
- ``CVAT for video`` has no tags; ``CVAT for images`` has them in ``<image id="FRAME" name="frame_000012">``.
- A skeleton has no ``outside`` of its own: it is outside where all its elements are.
- The video is ``<source>``, a file's name, in ``<meta>`` or in its ``<task>``, else the task's name where it is a
  video's; a project's tracks and images say which task they are of (``task_id``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ...base.errors import DataError
from .annotation import (
    Annotation,
    AnnotationFile,
    FrameRange,
    Unusable,
    read_frame,
    read_label,
    read_name,
    read_video_name,
    shown,
)
from .cvat_tracks import (
    Shape,
    Sighting,
    frame_runs,
    is_unset,
    label_of,
    person_of,
    persons_overlap,
    some_named,
    track_sightings,
    whole_number,
)
from .video_names import looks_like_video
from .xml_events import parse_xml

FORMAT = "cvat"
SHAPES = frozenset({"box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton"})
MAX_SHAPES = 10_000_000
_STEP = re.compile(r"step\s*=\s*([0-9]{1,6})")


@dataclass(frozen=True)
class CvatOptions:
    """Options of a reading."""

    label_attribute: str = ""  # an attribute whose value is the label; empty: the label of the track or tag
    video: str = ""  # name of the video, where the file has none


@dataclass
class _Task:
    source: str = ""
    name: str = ""
    step: int = 1
    bad_step: str = ""


@dataclass
class _Item:
    """A track, or the tags and shapes of a label in an image."""

    where: str
    tag: str
    attributes: dict[str, str]
    shapes: list[Shape] = field(default_factory=list)


def read_cvat(read: Callable[[int], bytes], name: str, options: CvatOptions = CvatOptions()) -> AnnotationFile:
    """Read a document; ``read(n)`` gives its next n bytes, ``name`` is the file's.

    Raises DataError ``annotations_xml`` for a document that is not well-formed, ``annotations_structure`` for one that
    is not CVAT's.
    """
    reader = _Reader(name, options)
    parse_xml(read, name, reader.start, reader.end)
    return reader.finish()


class _Reader:
    """Elements to annotations."""

    def __init__(self, name: str, options: CvatOptions) -> None:
        self._name, self._options = name, options
        self._found = AnnotationFile(FORMAT)
        self._tasks: dict[str, _Task] = {}
        self._task = _Task()  # of a file with one task
        self._task_id = ""
        self._open_task: _Task | None = None
        self._item: _Item | None = None
        self._shape: Shape | None = None
        self._attribute = ""
        self._image: tuple[str, dict[str, str]] | None = None
        self._by_video: dict[str, list[tuple[str, bool, list[Sighting]]]] = {}  # where, track?, sightings
        self._in_images: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
        self._steps: dict[str, int] = {}
        self._tracks = self._images = self._shapes = 0

    def start(self, path: list[str], attributes: dict[str, str]) -> None:
        tag = path[-1]
        if len(path) == 1 and tag != "annotations":
            raise self._not_cvat(f"its root is <{shown(tag)[1:-1]}>")
        if path[1:2] == ["meta"]:
            if tag == "task":
                self._open_task = _Task()
        elif len(path) == 2:
            self._start_item(tag, attributes)
        elif len(path) == 3 and self._item is not None and self._item.tag == "track" and tag in SHAPES:
            self._count_shape()
            self._shape = Shape(attributes.get("frame"), attributes.get("outside", "0"))
            self._item.shapes.append(self._shape)
        elif len(path) == 3 and self._image is not None and (tag in SHAPES or tag == "tag"):
            self._count_shape()
            self._item = _Item(self._image[0], tag, attributes)
            self._shape = Shape(self._image[1].get("id"), "0")
            if "track_id" in attributes:
                self._shape.attributes["track_id"] = attributes["track_id"]
        elif len(path) == 4 and path[2] == "skeleton" and self._shape is not None and "outside" in attributes:
            self._shape.parts.add(attributes["outside"])
        elif tag == "attribute":
            self._attribute = attributes.get("name", "")

    def end(self, path: list[str], text: str) -> None:
        tag = path[-1]
        if path[1:2] == ["meta"]:
            self._end_meta(path, text)
        elif (tag == "attribute" and self._shape is not None and len(path) == 4) or (
            tag == "attribute" and self._shape is not None and path[1] == "tag" and len(path) == 3
        ):
            self._shape.attributes[self._attribute] = text
        elif len(path) == 3 and self._image is not None and self._item is not None:
            self._use(self._end_in_image)
        elif len(path) == 2 and self._item is not None and self._item.tag == "track":
            self._use(self._end_track)
        elif len(path) == 2 and self._item is not None:
            self._use(self._end_in_image)
        if len(path) == 2:
            self._image = self._item = self._shape = None

    def finish(self) -> AnnotationFile:
        """Return what was read, its frames joined to ranges."""
        if not self._tracks and not self._images and not self._found.problems:
            self._found.note("it has no tracks, tags or images")
        for (video, label, person), frames in self._in_images.items():
            step = self._steps.get(video, 1)
            for first, end, where in frame_runs(frames, step):
                sighting = Sighting(first, end, label, person)
                self._by_video.setdefault(video, []).append((where, person.startswith("track "), [sighting]))
        for video, items in self._by_video.items():
            several = persons_overlap([sightings for _, _, sightings in items])
            mixed = some_named(items)
            for where, track, sightings in items:
                for seen in sightings:
                    person = "" if track and not several and not mixed else seen.person
                    span = FrameRange(seen.first, seen.end)
                    together = several or mixed
                    self._found.add(Annotation(where, video, seen.label, span, person=person, together=together))
        return self._found

    def _start_item(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "track":
            self._tracks += 1
            number = shown(attributes.get("id", str(self._tracks - 1)))[1:-1]
            self._item = _Item(f"track {number}", tag, attributes)
        elif tag == "image":
            self._images += 1
            self._image = (f"image {shown(attributes.get('id', '?'))[1:-1]}", attributes)
        elif tag == "tag":
            self._images += 1
            self._item = _Item(f"tag {self._images}", tag, attributes, [Shape(attributes.get("frame"), "0")])
            self._shape = self._item.shapes[0]
        elif tag not in ("version", "meta"):
            self._found.note(f"elements called {shown(tag)} are not read")

    def _end_meta(self, path: list[str], text: str) -> None:
        task = self._open_task or self._task
        parent, tag = path[-2], path[-1]
        if tag == "source":
            task.source = text
        elif tag == "frame_filter" and text:
            match = _STEP.fullmatch(text.strip())
            step = int(match[1]) if match else 0
            task.step, task.bad_step = (step, "") if step else (1, text)
        elif tag == "id" and parent == "task":
            self._task_id = text
        elif tag == "name" and parent == "task":
            task.name = text
        elif tag == "task" and self._open_task is not None:
            if self._task_id in self._tasks:
                raise self._not_cvat(f"two tasks have the id {shown(self._task_id)}")
            self._tasks[self._task_id] = self._open_task
            self._open_task = None

    def _task_of(self, attributes: dict[str, str]) -> _Task:
        if "task_id" in attributes and len(self._tasks) > 1:
            task = self._tasks.get(attributes["task_id"])
            if task is None:
                raise Unusable("unknown_task", f"it is of task {shown(attributes['task_id'])}, which <meta> lacks")
        elif len(self._tasks) > 1:
            raise Unusable("unknown_task", "it does not say of which of the file's tasks it is")
        else:
            task = next(iter(self._tasks.values()), self._task)
            task = replace(task, source=task.source or self._task.source)
        if not task.source and (self._options.video or looks_like_video(task.name)):
            task = replace(task, source=self._options.video or task.name)
        if task.bad_step:
            raise Unusable("bad_frame", f"the task's frame_filter is {shown(task.bad_step)}, expected step=N")
        return task

    def _use(self, work: Callable[[_Item], None]) -> None:
        assert self._item is not None
        try:
            work(self._item)
        except Unusable as problem:
            self._found.refuse(self._item.where, problem)
        if self._image is not None:
            self._item = self._shape = None

    def _end_track(self, item: _Item) -> None:
        task = self._task_of(item.attributes)
        video = _video_of(task)
        label = read_label(item.attributes.get("label"))
        person = f"track {read_name(item.attributes.get('id'), 'the id') or self._tracks - 1}"
        sightings = track_sightings(item.shapes, label, person, task.step, self._options.label_attribute)
        if self._options.label_attribute and any(
            is_unset(shape, self._options.label_attribute) for shape in item.shapes
        ):
            self._found.note(f"frames without a value of {shown(self._options.label_attribute)} are left out")
        named = any(seen.person != person for seen in sightings)
        self._by_video.setdefault(video, []).append((item.where, not named, sightings))

    def _end_in_image(self, item: _Item) -> None:
        shape = item.shapes[0] if item.shapes else self._shape
        assert shape is not None
        task = self._task_of(self._image[1] if self._image else item.attributes)
        image = self._image[1].get("name", "") if self._image else ""
        if not task.source and image and not re.fullmatch(r"frame_\d+(\.\w+)?", image):
            raise Unusable("no_video_name", f"the image {shown(image)} is of no video: the task is one of images")
        video = _video_of(task)
        label = read_label(item.attributes.get("label"))
        frame = read_frame(whole_number(shape.frame), "the frame")
        label = label_of(shape, label, self._options.label_attribute)
        track = shape.attributes.get("track_id", "")
        person = person_of(shape, f"track {track}" if track else "")
        self._steps[video] = task.step
        self._in_images.setdefault((video, label, person), []).append((frame, item.where))

    def _count_shape(self) -> None:
        self._shapes += 1
        if self._shapes > MAX_SHAPES:
            raise DataError(
                f"{self._name} has more than {MAX_SHAPES:,} shapes", fix="export fewer tasks at once", code="too_large"
            )

    def _not_cvat(self, problem: str) -> DataError:
        return DataError(
            f"{self._name} is not an export of CVAT: {problem}",
            fix="in CVAT: Export task dataset, CVAT for video 1.1 or CVAT for images 1.1",
            code="annotations_structure",
        )


def _video_of(task: _Task) -> str:
    if not task.source.strip():
        raise Unusable("no_video_name", "the file names no video: give it with --video NAME")
    return read_video_name(task.source)
