"""The mini-world: short real video files of moving shapes, for the demo and for trying things out.

A class is an object (ball, box, star, each of its own colour) and a motion (sideways from edge to
edge, or towards the camera and back), so every class differs from another one only by its motion.
A group is one scene with its
own backdrop, light, frame size, frame rate and length, the same for every class: what a file's
header says tells next to nothing of its class. Clips of one class and scene differ in size, place,
speed, phase, shade, sensor noise, camera shake and the codec's quality.

Every clip is drawn from (seed, scene, class, number) alone: the same seed gives the same bytes
with the same build of the codec, however many processes render.
"""

from __future__ import annotations

import csv
import io
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..base.errors import MissingExtra, SettingsError, UsageError
from ..base.files import new_directory
from ..base.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CLASSES = ("ball-sideways", "ball-approaching", "box-sideways", "box-approaching", "star-sideways", "star-approaching")
CODEC: Final = "libx264"


@dataclass(frozen=True)
class ShapeClip:
    """One rendered file."""

    path: Path  # DIR/LABEL/NAME.mp4
    label: str  # one of CLASSES
    group: str  # its scene; whole scenes are held out together


@dataclass(frozen=True)
class _Order:
    """What a rendering process needs to make one clip."""

    path: Path
    label: str
    seed: int
    scene: int
    number: int  # of the clip within its class and scene


def render_dataset(
    folder: Path,
    *,
    groups: int,
    clips_per_class_and_group: int,
    seed: int,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[ShapeClip]:
    """Render ``groups`` scenes of every class into ``folder``, as ``LABEL/NAME.mp4``.

    The clips are H.264 in MP4, yuv420p, 160 to 240 pixels wide, 15 to 30 frames per second, 1.5 to
    3 seconds long. ``folder`` must be new or empty and appears whole, with a ``labels.csv``
    (``path,label,group``) that the agent reads. ``progress`` advances by one per clip.

    Returns the clips in order of class, scene and number. Raises UsageError on a count below 1,
    MissingExtra without PyAV, SettingsError when PyAV has no H.264 encoder, StorageError when the
    folder is not empty or cannot be written.
    """
    if min(groups, clips_per_class_and_group, workers) < 1:
        asked = f"groups={groups}, clips_per_class_and_group={clips_per_class_and_group}, workers={workers}"
        raise UsageError(f"rendering needs at least 1 of each, got {asked}")
    _check_encoder()
    folder = Path(folder)
    with new_directory(folder) as building:
        orders = list(_orders(building, groups, clips_per_class_and_group, seed))
        for label in CLASSES:
            (building / label).mkdir()
        # Fresh processes: a fork of a program with running threads (ONNX Runtime, gRPC) may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=min(workers, len(orders)), mp_context=context) as pool:
            try:
                for done in as_completed([pool.submit(_render, order) for order in orders]):
                    done.result()
                    if progress is not None:
                        progress.advance()
            except BaseException:  # Ctrl-C too: do not render what nobody will see
                pool.shutdown(cancel_futures=True)
                raise
        clips = [
            ShapeClip(order.path.relative_to(building), order.label, f"scene-{order.scene:02d}") for order in orders
        ]
        _write_labels(building / "labels.csv", clips)
    return [ShapeClip(folder / clip.path, clip.label, clip.group) for clip in clips]


def _orders(folder: Path, groups: int, clips: int, seed: int) -> Iterator[_Order]:
    for label, scene, number in itertools.product(CLASSES, range(groups), range(clips)):
        yield _Order(folder / label / f"scene{scene:02d}-{label}-{number:02d}.mp4", label, seed, scene, number)


def _write_labels(path: Path, clips: Sequence[ShapeClip]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "group"))
        rows.writerows((clip.path.as_posix(), clip.label, clip.group) for clip in clips)


def _check_encoder() -> None:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", extra="agent") from error
    if CODEC not in av.codecs_available:
        raise SettingsError(
            f"this build of PyAV has no H.264 encoder ({CODEC}), which the shape videos need",
            fix="pip install --force-reinstall --only-binary=av av",
        )


def _render(order: _Order) -> None:
    """Draw one clip and write its file (in a rendering process)."""
    import numpy as np

    from .shape_frames import draw_clip, draw_scene

    scene = draw_scene(_random(order.seed, order.scene))
    random = _random(order.seed, order.scene, CLASSES.index(order.label) + 1, order.number)
    crf = int(random.integers(20, 31))  # the codec's quality, so that a file's length says little
    thing, motion = order.label.split("-")
    frames = np.stack(list(draw_clip(scene, thing, motion, random)))
    order.path.write_bytes(_encode(frames, scene.fps, crf))


def _random(*key: int) -> np.random.Generator:
    """A stream of its own for each scene and each clip."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key[0], spawn_key=key[1:])))


def _encode(frames: npt.NDArray[np.uint8], fps: int, crf: int) -> bytes:
    """H.264 in MP4 of frames [T, H, W, 3]."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # One thread, since there is a process per core already.
        options = {"preset": "ultrafast", "crf": str(crf), "threads": "1"}
        stream = container.add_stream(CODEC, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()
