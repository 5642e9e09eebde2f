"""The mini-world: real video files in which a class is an object doing a motion.

Five objects by five motions make 25 classes. An actor, large and of a vivid colour, does the motion;
a smaller, dull distractor of another kind rests or drifts. One frame tells the object but hardly the
motion; what is coarse and moves tells the motion but hardly the object. A group is one scene with its
own backdrop, light, frame size, rate and codec, the same for every class, and is held out whole.
docs/miniworld.md has the figures.

Every clip is drawn from (seed, group, class, number) alone: the same seed gives the same bytes with
the same build of the codecs, however many processes render.
"""

from __future__ import annotations

import csv
import io
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...base.errors import MissingExtra, SettingsError, UsageError
from ...base.files import new_directory
from ...base.progress import Progress

if TYPE_CHECKING:
    from .frames import Image
    from .plan import ClipPlan

OBJECTS: Final[tuple[str, ...]] = ("ball", "box", "star", "ring", "cross")
MOTIONS: Final[tuple[str, ...]] = ("crossing", "lifting", "circling", "approaching", "swinging")
CLASSES: Final[tuple[str, ...]] = tuple(f"{kind}_{motion}" for kind in OBJECTS for motion in MOTIONS)
EXPERIMENT_SEED: Final = 0  # of the clips that experiments and the demo run on
EXPERIMENT_GROUPS: Final = 64  # scenes of the experiments, every class once in each (docs/decisions/006)
EXPERIMENT_TEST_SHARE: Final = 0.75  # of their clips, by whole scenes
PRETRAINING_SEED: Final = 1000  # of the clips that the small networks were trained on
CAPTIONED = 8  # frames per clip
CODECS = ("libx264", "mpeg4")


@dataclass(frozen=True)
class ClipOrder:
    """What names one clip of the mini-world; everything about it follows."""

    seed: int
    group: int
    kind: str  # of OBJECTS
    motion: str  # of MOTIONS
    number: int  # within its class and group

    @property
    def label(self) -> str:
        return f"{self.kind}_{self.motion}"

    @property
    def group_name(self) -> str:
        return f"g{self.group:02d}"

    @property
    def path(self) -> str:
        """Below the data set's folder."""
        return f"{self.label}/{self.group_name}_c{self.number:02d}.mp4"

    def plan(self) -> ClipPlan:
        from .plan import plan_clip

        return plan_clip(self.seed, self.group, self.kind, self.motion, self.number)


def clip_orders(
    *,
    groups: int,
    seed: int,
    clips_per_class_and_group: int = 1,
    objects: Sequence[str] = OBJECTS,
    motions: Sequence[str] = MOTIONS,
) -> Iterator[ClipOrder]:
    """The clips that ``render_dataset`` would make, in its order: by class, group and number."""
    for kind, motion in itertools.product(objects, motions):
        for group, number in itertools.product(range(groups), range(clips_per_class_and_group)):
            yield ClipOrder(seed, group, kind, motion, number)


def render_dataset(
    folder: Path,
    *,
    groups: int,
    seed: int,
    clips_per_class_and_group: int = 1,
    objects: Sequence[str] = OBJECTS,
    motions: Sequence[str] = MOTIONS,
    progress: Progress | None = None,
    processes: int = 2,
) -> None:
    """Render ``groups`` scenes of every class into ``folder``, as ``LABEL/gNN_cNN.mp4``.

    The clips are H.264 or MPEG-4 in MP4, 240 to 320 pixels wide, 15 to 20 frames per second, 2.2 to
    3.6 s long. ``folder`` must be new or empty and appears whole, with ``labels.csv``
    (``path,label,group``) and ``captions.csv`` (``path,frame,caption``: the true caption of the middle
    frame of each eighth of every clip). ``progress`` advances by one per clip.

    Raises UsageError on a count below 1 or a word that is no object or motion, MissingExtra without
    PyAV, SettingsError when PyAV lacks an encoder, StorageError when the folder is not empty or cannot
    be written.
    """
    _check_asked(groups, clips_per_class_and_group, processes, objects, motions)
    _check_encoders()
    orders = list(
        clip_orders(
            groups=groups,
            seed=seed,
            clips_per_class_and_group=clips_per_class_and_group,
            objects=objects,
            motions=motions,
        )
    )
    with new_directory(Path(folder)) as building:
        for label in dict.fromkeys(order.label for order in orders):
            (building / label).mkdir()
        for _ in render_clips(orders, building, processes=processes):
            if progress is not None:
                progress.advance()
        _write_rows(building / "labels.csv", ("path", "label", "group"), _label_rows(orders))
        _write_rows(building / "captions.csv", ("path", "frame", "caption"), _caption_rows(orders))


def render_clips(orders: Sequence[ClipOrder], folder: Path, *, processes: int) -> Iterator[ClipOrder]:
    """Write the file of every order below ``folder``, whose label folders exist; gives each when it is done."""
    if processes == 1:
        for order in orders:
            _render(folder, order)
            yield order
        return
    # Fresh processes: a fork of a program with running threads (ONNX Runtime, gRPC) may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(processes, len(orders)), mp_context=context) as pool:
        try:
            yield from pool.map(_render, itertools.repeat(folder), orders, chunksize=8)
        except BaseException:  # Ctrl-C too: do not render what nobody will see
            pool.shutdown(cancel_futures=True)
            raise


def encode_clip(frames: Iterable[Image], *, fps: int, codec: str, quality: int) -> bytes:
    """MP4 of frames uint8 [H, W, 3], yuv420p. ``quality``: x264's crf, or MPEG-4's quantiser (less is better)."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=_codec_options(codec, quality))
        stream.pix_fmt = "yuv420p"
        for index, frame in enumerate(frames):
            if index == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _codec_options(codec: str, quality: int) -> dict[str, str]:
    # One thread, since there is a process per core already, and the bytes must not depend on it.
    if codec == "libx264":
        return {"preset": "ultrafast", "crf": str(quality), "threads": "1"}
    return {"flags": "+qscale", "global_quality": str(118 * quality), "threads": "1"}  # 118: FF_QP2LAMBDA


def _render(folder: Path, order: ClipOrder) -> ClipOrder:
    """Draw one clip and write its file (in a rendering process)."""
    from .frames import draw_frames
    from .plan import generator

    plan = order.plan()
    key = (order.group, 1 + OBJECTS.index(order.kind), 1 + MOTIONS.index(order.motion), order.number, 1)
    random = generator(order.seed, *key)
    quality = int(random.integers(24, 34) if plan.scene.codec == "libx264" else random.integers(4, 10))
    frames = draw_frames(plan, random)
    (folder / order.path).write_bytes(encode_clip(frames, fps=plan.scene.fps, codec=plan.scene.codec, quality=quality))
    return order


def _label_rows(orders: Sequence[ClipOrder]) -> Iterator[tuple[str, ...]]:
    for order in orders:
        yield order.path, order.label, order.group_name


def _caption_rows(orders: Sequence[ClipOrder]) -> Iterator[tuple[str, ...]]:
    from ...runtime.keyframes import uniform_indices
    from .plan import caption_frame

    for order in orders:
        plan = order.plan()
        for frame in uniform_indices(plan.frames, CAPTIONED).tolist():
            yield order.path, str(frame), caption_frame(plan, frame)


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _check_asked(groups: int, clips: int, processes: int, objects: Sequence[str], motions: Sequence[str]) -> None:
    if min(groups, clips, processes) < 1:
        asked = f"groups={groups}, clips_per_class_and_group={clips}, processes={processes}"
        raise UsageError(f"rendering needs at least 1 of each, got {asked}")
    for what, given, known in (("object", objects, OBJECTS), ("motion", motions, MOTIONS)):
        unknown = [word for word in given if word not in known]
        if unknown or not given:
            got = f"unknown {what} '{unknown[0]}'" if unknown else f"no {what} at all"
            raise UsageError(f"{got}; the mini-world knows {', '.join(known)}")


def _check_encoders() -> None:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", extra="agent") from error
    missing = [codec for codec in CODECS if codec not in av.codecs_available]
    if missing:
        raise SettingsError(
            f"this build of PyAV has no encoder {' and '.join(missing)}, which the mini-world's videos need",
            fix="pip install --force-reinstall --only-binary=av av",
        )
