"""Training clips of the small networks: rendered, encoded, decoded again, and kept as small frames.

Their seed differs from that of the experiments' clips, because published networks too are trained on other data
than they are used on. Whole groups are held out for the figures.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.progress import Progress
from ..miniworld.specs import MOTIONS, OBJECTS, caption_frame
from ..miniworld.videos import PRETRAINING_SEED, ClipKey, clip_keys, render_clips

CANDIDATES = 32  # frames of a clip, among which the runtime picks keyframes
STILLS = 12  # captioned frames of a clip
STILL_SIZE, FRAME_SIZE = 104, 72  # pixels; training takes slightly smaller random crops
LARGEST_FRAME, HELD_BYTES = 1 << 20, 1 << 28

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TrainingClips:
    """Small frames of N clips, and what they show."""

    videos: Bytes  # [N, 32, 72, 72, 3]: candidate frames, short side to 72, centre crop
    tracks: npt.NDArray[np.float32]  # [N, 32, 3]: actor's x, y, radius in ``videos``, shares of their side
    stills: Bytes  # [N, 12, 104, 104, 3]: frames stretched to 104 x 104
    captions: tuple[tuple[str, ...], ...]  # [N][12], true captions of the stills
    places: npt.NDArray[np.float32]  # [N, 12, 2, 4]: x, y, radius in x and in y of actor and distractor, shares
    kinds: npt.NDArray[np.int64]  # [N, 2]: of actor and distractor, indices into OBJECTS
    motions: npt.NDArray[np.int64]  # [N], indices into MOTIONS
    groups: npt.NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.motions)

    def of_groups(self, groups: Sequence[int]) -> TrainingClips:
        """The clips of these groups."""
        rows = np.flatnonzero(np.isin(self.groups, groups))
        return TrainingClips(
            self.videos[rows],
            self.tracks[rows],
            self.stills[rows],
            tuple(self.captions[row] for row in rows),
            self.places[rows],
            self.kinds[rows],
            self.motions[rows],
            self.groups[rows],
        )


def render_training_clips(
    *, groups: int, seed: int = PRETRAINING_SEED, processes: int = 2, progress: Progress | None = None
) -> TrainingClips:
    """Render every class in ``groups`` scenes and decode the files again. ``progress`` advances by one per clip."""
    keys = list(clip_keys(groups=groups, seed=seed))
    with tempfile.TemporaryDirectory(prefix="flamest-clips-") as folder:
        for label in {key.label for key in keys}:
            (Path(folder) / label).mkdir()
        rendered = []
        for clip in _render_all(keys, Path(folder), processes):
            rendered.append(clip)
            if progress is not None:
                progress.advance()
    return TrainingClips(
        videos=np.stack([clip.video for clip in rendered]),
        tracks=np.stack([clip.track for clip in rendered]).astype(np.float32),
        stills=np.stack([clip.stills for clip in rendered]),
        captions=tuple(clip.captions for clip in rendered),
        places=np.stack([clip.places for clip in rendered]).astype(np.float32),
        kinds=np.array([clip.kinds for clip in rendered]),
        motions=np.array([MOTIONS.index(key.motion) for key in keys]),
        groups=np.array([key.group for key in keys]),
    )


@dataclass(frozen=True, eq=False)
class _RenderedClip:
    """One clip's row of TrainingClips."""

    video: Bytes
    track: npt.NDArray[np.float64]
    stills: Bytes
    captions: tuple[str, ...]
    places: npt.NDArray[np.float64]
    kinds: tuple[int, int]


def _render_all(keys: Sequence[ClipKey], folder: Path, processes: int) -> Iterator[_RenderedClip]:
    if processes == 1:
        yield from map(_render, itertools.repeat(folder), keys)
        return
    with ProcessPoolExecutor(max_workers=processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_render, itertools.repeat(folder), keys, chunksize=8)


def _render(folder: Path, key: ClipKey) -> _RenderedClip:
    """Render one clip, decode it as the runtime does, and describe its stills."""
    from ...runtime.bundle.manifest import FramePreprocessing
    from ...runtime.video.decoded_clip import DecodedClip
    from ...runtime.video.preprocessing import prepare_frames

    (_,) = render_clips([key], folder, processes=1)
    path = folder / key.path
    fd = os.open(path, os.O_RDONLY)
    try:
        clip = DecodedClip(fd, candidates=CANDIDATES, largest_frame=LARGEST_FRAME, held_bytes=HELD_BYTES)
        rgb = np.stack(list(clip.rgb(range(len(clip.candidates)))))
    finally:
        os.close(fd)
    path.unlink()
    mean, std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)  # leaves values at 0 … 255
    video = prepare_frames(rgb, FramePreprocessing(size=FRAME_SIZE, fit="crop", filter="bilinear", mean=mean, std=std))
    chosen = np.linspace(0, len(rgb) - 1, STILLS).round().astype(int)
    stills = prepare_frames(
        rgb[chosen], FramePreprocessing(size=STILL_SIZE, fit="stretch", filter="bicubic", mean=mean, std=std)
    )
    spec = key.spec()
    frames = [int(clip.candidates[row]) for row in chosen]
    kinds = (OBJECTS.index(spec.actor.kind), OBJECTS.index(spec.other.kind))
    actor, shown = spec.actor, np.asarray(clip.candidates)
    return _RenderedClip(
        video=_as_bytes(video),
        # The short side of a frame is its height: a centre crop keeps the middle.
        track=np.stack([0.5 + actor.x[shown], 0.5 + actor.y[shown], actor.radius[shown]], axis=1),
        stills=_as_bytes(stills),
        captions=tuple(caption_frame(spec, frame) for frame in frames),
        places=np.stack([_places(key, frame) for frame in frames]),
        kinds=kinds,
    )


def _as_bytes(pixels: npt.NDArray[np.float32]) -> Bytes:
    """float32 [N, 3, S, S] of 0 … 255 -> uint8 [N, S, S, 3]"""
    return np.ascontiguousarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1))


def _places(key: ClipKey, frame: int) -> npt.NDArray[np.float64]:
    spec = key.spec()
    aspect = spec.scene.width / spec.scene.height
    rows = []
    for thing in (spec.actor, spec.other):
        radius = thing.radius[frame]
        rows.append((0.5 + thing.x[frame] / aspect, 0.5 + thing.y[frame], radius / aspect, radius))
    return np.array(rows)
