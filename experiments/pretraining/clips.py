"""The clips that the small networks are trained on: rendered, coded, decoded again, kept as small frames.

They are of another seed than the clips of the experiments, as published networks are trained on other
data than they are used for. Whole groups are held out for the figures.
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
from ..miniworld.plan import caption_frame
from ..miniworld.videos import MOTIONS, OBJECTS, PRETRAINING_SEED, ClipOrder, clip_orders, render_clips

CANDIDATES = 32  # frames of a clip, as the runtime picks keyframes among
STILLS = 12  # captioned frames of a clip
STILL_SIZE, FILM_SIZE = 104, 72  # pixels; training crops them a little smaller, at random places
LARGEST_FRAME, HELD_BYTES = 1 << 20, 1 << 28

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Footage:
    """What N clips show, small."""

    films: Bytes  # [N, 32, 72, 72, 3]: candidates, short side to 72, centre crop
    tracks: npt.NDArray[np.float32]  # [N, 32, 3]: actor's x, y, radius in ``films``, shares of their side
    stills: Bytes  # [N, 12, 104, 104, 3]: frames brought to 104 x 104 whatever their aspect
    captions: tuple[tuple[str, ...], ...]  # [N][12], true ones
    places: npt.NDArray[
        np.float32
    ]  # [N, 12, 2, 4]: actor's and distractor's x, y, radii in x and y, shares of the frame
    kinds: npt.NDArray[np.int64]  # [N, 2]: actor's and distractor's, of OBJECTS
    motions: npt.NDArray[np.int64]  # [N], of MOTIONS
    groups: npt.NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.motions)

    def of_groups(self, groups: Sequence[int]) -> Footage:
        rows = np.flatnonzero(np.isin(self.groups, groups))
        return Footage(
            self.films[rows],
            self.tracks[rows],
            self.stills[rows],
            tuple(self.captions[row] for row in rows),
            self.places[rows],
            self.kinds[rows],
            self.motions[rows],
            self.groups[rows],
        )


def film(*, groups: int, seed: int = PRETRAINING_SEED, processes: int = 2, progress: Progress | None = None) -> Footage:
    """Render every class in ``groups`` scenes and decode the files again. ``progress``: one step per clip."""
    orders = list(clip_orders(groups=groups, seed=seed))
    with tempfile.TemporaryDirectory(prefix="flamest-footage-") as folder:
        for label in {order.label for order in orders}:
            (Path(folder) / label).mkdir()
        shots = []
        for shot in _shoot_all(orders, Path(folder), processes):
            shots.append(shot)
            if progress is not None:
                progress.advance()
    return Footage(
        films=np.stack([shot.film for shot in shots]),
        tracks=np.stack([shot.track for shot in shots]).astype(np.float32),
        stills=np.stack([shot.stills for shot in shots]),
        captions=tuple(shot.captions for shot in shots),
        places=np.stack([shot.places for shot in shots]).astype(np.float32),
        kinds=np.array([shot.kinds for shot in shots]),
        motions=np.array([MOTIONS.index(order.motion) for order in orders]),
        groups=np.array([order.group for order in orders]),
    )


@dataclass(frozen=True, eq=False)
class _Shot:
    """One clip's row of Footage."""

    film: Bytes
    track: npt.NDArray[np.float64]
    stills: Bytes
    captions: tuple[str, ...]
    places: npt.NDArray[np.float64]
    kinds: tuple[int, int]


def _shoot_all(orders: Sequence[ClipOrder], folder: Path, processes: int) -> Iterator[_Shot]:
    if processes == 1:
        yield from map(_shoot, itertools.repeat(folder), orders)
        return
    with ProcessPoolExecutor(max_workers=processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_shoot, itertools.repeat(folder), orders, chunksize=8)


def _shoot(folder: Path, order: ClipOrder) -> _Shot:
    """Render one clip, decode it as the runtime does, and say what is true of its stills."""
    from ...runtime.bundle.manifest import FramePreprocessing
    from ...runtime.video.decoded_clip import DecodedClip
    from ...runtime.video.preprocessing import prepare_frames

    (_,) = render_clips([order], folder, processes=1)
    path = folder / order.path
    fd = os.open(path, os.O_RDONLY)
    try:
        clip = DecodedClip(fd, candidates=CANDIDATES, largest_frame=LARGEST_FRAME, held_bytes=HELD_BYTES)
        rgb = np.stack(list(clip.rgb(range(len(clip.candidates)))))
    finally:
        os.close(fd)
    path.unlink()
    mean, std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)  # values stay 0 … 255
    films = prepare_frames(rgb, FramePreprocessing(size=FILM_SIZE, fit="crop", filter="bilinear", mean=mean, std=std))
    chosen = np.linspace(0, len(rgb) - 1, STILLS).round().astype(int)
    stills = prepare_frames(
        rgb[chosen], FramePreprocessing(size=STILL_SIZE, fit="stretch", filter="bicubic", mean=mean, std=std)
    )
    plan = order.plan()
    frames = [int(clip.candidates[row]) for row in chosen]
    kinds = (OBJECTS.index(plan.actor.kind), OBJECTS.index(plan.other.kind))
    actor, shown = plan.actor, np.asarray(clip.candidates)
    return _Shot(
        film=_as_bytes(films),
        # The frame's short side is its height: a centre crop keeps its middle.
        track=np.stack([0.5 + actor.x[shown], 0.5 + actor.y[shown], actor.radius[shown]], axis=1),
        stills=_as_bytes(stills),
        captions=tuple(caption_frame(plan, frame) for frame in frames),
        places=np.stack([_places(order, frame) for frame in frames]),
        kinds=kinds,
    )


def _as_bytes(pixels: npt.NDArray[np.float32]) -> Bytes:
    """float32 [N, 3, S, S] of 0 … 255 -> uint8 [N, S, S, 3]"""
    return np.ascontiguousarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1))


def _places(order: ClipOrder, frame: int) -> npt.NDArray[np.float64]:
    plan = order.plan()
    aspect = plan.scene.width / plan.scene.height
    rows = []
    for thing in (plan.actor, plan.other):
        radius = thing.radius[frame]
        rows.append((0.5 + thing.x[frame] / aspect, 0.5 + thing.y[frame], radius / aspect, radius))
    return np.array(rows)
