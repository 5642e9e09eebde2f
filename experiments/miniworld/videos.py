"""The mini-world: real video files in which a class is an object doing a motion.

Five objects by five motions make 25 classes. An actor, large and of a vivid colour, does the motion;
a smaller, dull distractor of another kind rests or drifts. One frame shows the object but hardly the motion;
coarse moving shapes show the motion but hardly the object. A group is one scene with its own backdrop, light,
frame size, rate and codec, the same for every class, and is held out as a whole. docs/explanation/miniworld.md has the
figures.

A clip depends on (seed, group, class, number) alone: the same seed gives the same bytes with the same build of
the codecs, with any number of processes.
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
from ...runtime.clip_records import Segment
from .specs import MOTIONS, OBJECTS, ClipSpec, caption_frame, generator, sample_clip

if TYPE_CHECKING:
    import numpy as np

    from .frames import Image

CLASSES: Final[tuple[str, ...]] = tuple(f"{kind}_{motion}" for kind in OBJECTS for motion in MOTIONS)
EXPERIMENT_SEED: Final = 0  # of the clips of the experiments and the demo
# Scenes of the experiments, with one clip per class (docs/decisions/006-the-experiments-mini-world.md).
EXPERIMENT_GROUPS: Final = 64
EXPERIMENT_TEST_SHARE: Final = 0.75  # of their clips, by whole scenes
PRETRAINING_SEED: Final = 1000  # of the training clips of the small networks
CAPTIONED = 8  # frames per clip
CODECS = ("libx264", "mpeg4")


@dataclass(frozen=True)
class ClipKey:
    """Key of a clip of the mini-world, which determines everything in it."""

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
        """Path of the file below the data set's folder."""
        return f"{self.label}/{self.group_name}_c{self.number:02d}.mp4"

    def spec(self) -> ClipSpec:
        """The content of the clip."""
        return sample_clip(self.seed, self.group, self.kind, self.motion, self.number)


def clip_keys(
    *,
    groups: int,
    seed: int,
    clips_per_class_and_group: int = 1,
    objects: Sequence[str] = OBJECTS,
    motions: Sequence[str] = MOTIONS,
) -> Iterator[ClipKey]:
    """Keys of the clips of ``render_dataset``, in its order: by class, group and number."""
    for kind, motion in itertools.product(objects, motions):
        for group, number in itertools.product(range(groups), range(clips_per_class_and_group)):
            yield ClipKey(seed, group, kind, motion, number)


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

    Raises UsageError on a count below 1 or an unknown object or motion, MissingExtra without
    PyAV, SettingsError when PyAV lacks an encoder, StorageError when the folder is not empty or cannot
    be written.
    """
    _check_arguments(groups, clips_per_class_and_group, processes, objects, motions)
    check_encoders()
    keys = list(
        clip_keys(
            groups=groups,
            seed=seed,
            clips_per_class_and_group=clips_per_class_and_group,
            objects=objects,
            motions=motions,
        )
    )
    with new_directory(Path(folder)) as building:
        for label in dict.fromkeys(key.label for key in keys):
            (building / label).mkdir()
        for _ in render_clips(keys, building, processes=processes):
            if progress is not None:
                progress.advance()
        _write_rows(building / "labels.csv", ("path", "label", "group"), _label_rows(keys))
        _write_rows(building / "captions.csv", ("path", "frame", "caption"), _caption_rows(keys))


def render_clips(keys: Sequence[ClipKey], folder: Path, *, processes: int) -> Iterator[ClipKey]:
    """Render the clip of every key below ``folder``, whose label folders exist; yields each key when it is done."""
    if processes == 1:
        for key in keys:
            _render(folder, key)
            yield key
        return
    # Fresh processes: a fork of a program with running threads (ONNX Runtime, gRPC) may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(processes, len(keys)), mp_context=context) as pool:
        try:
            yield from pool.map(_render, itertools.repeat(folder), keys, chunksize=8)
        except BaseException:  # including Ctrl-C: do not render the rest
            pool.shutdown(cancel_futures=True)
            raise


def render_recording(path: Path, keys: Sequence[ClipKey]) -> tuple[tuple[str, Segment], ...]:
    """Write the clips of ``keys``, one after the other, as one video (H.264); returns label and segment of each.

    The clips are of one scene; key frames are a second apart.
    """
    from .frames import draw_frames

    fps = keys[0].spec().scene.fps
    parts: list[tuple[str, Segment]] = []

    def frames() -> Iterator[Image]:
        shown = 0
        for key in keys:
            spec = key.spec()
            yield from draw_frames(spec, _drawing(key))
            parts.append((key.label, Segment.of_seconds(shown / fps, (shown + spec.frames) / fps)))
            shown += spec.frames

    path.write_bytes(encode_clip(frames(), fps=fps, codec="libx264", quality=26, key_every=fps))
    return tuple(parts)


def encode_clip(frames: Iterable[Image], *, fps: int, codec: str, quality: int, key_every: int | None = None) -> bytes:
    """MP4 file of frames uint8 [H, W, 3], yuv420p. ``quality``: x264's crf or MPEG-4's quantiser (lower is better).

    ``key_every``: frames from one key frame to the next; the codec's choice unless given.
    """
    import av

    file = io.BytesIO()
    options = _codec_options(codec, quality) | ({} if key_every is None else {"g": str(key_every)})
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        for index, frame in enumerate(frames):
            if index == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _codec_options(codec: str, quality: int) -> dict[str, str]:
    # One thread: there is a process per core already, and the bytes must not depend on the number of threads.
    if codec == "libx264":
        return {"preset": "ultrafast", "crf": str(quality), "threads": "1"}
    return {"flags": "+qscale", "global_quality": str(118 * quality), "threads": "1"}  # 118: FF_QP2LAMBDA


def _render(folder: Path, key: ClipKey) -> ClipKey:
    """Draw one clip and write its file; runs in a rendering process."""
    from .frames import draw_frames

    spec, random = key.spec(), _drawing(key)
    quality = int(random.integers(24, 34) if spec.scene.codec == "libx264" else random.integers(4, 10))
    frames = draw_frames(spec, random)
    (folder / key.path).write_bytes(encode_clip(frames, fps=spec.scene.fps, codec=spec.scene.codec, quality=quality))
    return key


def _drawing(key: ClipKey) -> np.random.Generator:
    """The random numbers that a clip's frames are drawn with."""
    stream = (key.group, 1 + OBJECTS.index(key.kind), 1 + MOTIONS.index(key.motion), key.number, 1)
    return generator(key.seed, *stream)


def _label_rows(keys: Sequence[ClipKey]) -> Iterator[tuple[str, ...]]:
    for key in keys:
        yield key.path, key.label, key.group_name


def _caption_rows(keys: Sequence[ClipKey]) -> Iterator[tuple[str, ...]]:
    from ...runtime.keyframes import uniform_indices

    for key in keys:
        spec = key.spec()
        for frame in uniform_indices(spec.frames, CAPTIONED).tolist():
            yield key.path, str(frame), caption_frame(spec, frame)


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _check_arguments(groups: int, clips: int, processes: int, objects: Sequence[str], motions: Sequence[str]) -> None:
    if min(groups, clips, processes) < 1:
        counts = f"groups={groups}, clips_per_class_and_group={clips}, processes={processes}"
        raise UsageError(f"rendering needs at least 1 of each, got {counts}", fix="choose 1 or more of each")
    for kind, names, known in (("object", objects, OBJECTS), ("motion", motions, MOTIONS)):
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            got = f"unknown {kind} '{unknown[0]}'" if unknown else f"no {kind}"
            raise UsageError(f"{got}; the mini-world knows {', '.join(known)}", fix="choose among those")


def check_encoders() -> None:
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
