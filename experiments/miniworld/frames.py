"""Drawing of the mini-world's frames from a clip's specification.

A frame is painted as three int16 planes, which is faster than [H, W, 3]. The camera shakes, the backdrop slides
past behind the objects, and every frame has its own sensor noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .specs import ClipSpec, Scene, SceneObject, generator

Image = npt.NDArray[np.uint8]  # [H, W, 3], RGB
Planes = npt.NDArray[np.int16]  # [3, H, W]
Plane = npt.NDArray[np.float32]  # [H, W]

SHAKE = 3  # largest camera offset, pixels, in each direction
SLIDE = 24  # largest offset of the backdrop, pixels, in each direction
MARGIN = SHAKE + SLIDE
GRAINS = 32  # largest shift of the sensor's noise between frames, pixels
_BASE = {  # colour of a backdrop, RGB
    "plain": (112, 112, 116),
    "grass": (92, 122, 84),
    "sand": (142, 128, 102),
    "bricks": (126, 98, 90),
    "clouds": (104, 118, 138),
}


def draw_frames(spec: ClipSpec, random: np.random.Generator) -> Iterator[Image]:
    """The clip's frames in order; shake, slide, noise and shading are drawn from ``random``."""
    scene = spec.scene
    backdrop = _backdrop(scene)
    shake = np.clip(np.rint(np.cumsum(random.normal(0, 0.6, size=(spec.frames, 2)), axis=0)), -SHAKE, SHAKE)
    slide = np.rint(_slide(spec.frames, random))
    level = random.uniform(2, 6)
    grains = np.rint(random.normal(0, level, size=(scene.height + GRAINS, scene.width + GRAINS))).astype(np.int16)
    offsets = random.integers(0, GRAINS, size=(spec.frames, 2))
    shading = random.uniform(0, math.tau)
    for index in range(spec.frames):
        left, top = (MARGIN + shake[index] + slide[index]).astype(int)
        frame = backdrop[:, top : top + scene.height, left : left + scene.width].copy()
        for thing in (spec.other, spec.actor):
            _paint(frame, thing, index, scene, shake[index], shading)
        grain_x, grain_y = offsets[index]
        frame += grains[grain_y : grain_y + scene.height, grain_x : grain_x + scene.width]
        planes = np.clip(frame, 0, 255, out=frame).astype(np.uint8)
        yield np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _slide(frames: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Offsets [frames, 2] along one direction for the whole clip, at most SLIDE pixels from the centre."""
    end = random.uniform(-1, 1, size=2) * (SLIDE, 0.6 * SLIDE)
    start = random.uniform(-0.4, 0.4, size=2) * SLIDE
    return np.asarray(start + (end - start) * np.linspace(0, 1, frames)[:, None])


def _paint(
    frame: Planes, thing: SceneObject, index: int, scene: Scene, shake: npt.NDArray[np.float64], shading: float
) -> None:
    """Paint the object as of frame ``index`` into ``frame``, in place."""
    height, width = frame.shape[1:]
    cover, shade = _cover(thing.kind, round(thing.radius[index] * height, 1), thing.tilt, shading)
    reach = len(cover) // 2
    x = round(width / 2 + thing.x[index] * height - shake[0]) - reach
    y = round(height / 2 + thing.y[index] * height - shake[1]) - reach
    rows = slice(max(0, y), max(0, min(height, y + len(cover))))
    columns = slice(max(0, x), max(0, min(width, x + len(cover))))
    part = (slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x))
    colour = np.array(thing.rgb, dtype=np.float32) * np.array(scene.light, dtype=np.float32)
    behind = frame[:, rows, columns]
    lit = colour[:, None, None] * shade[part]
    frame[:, rows, columns] = behind + cover[part] * (lit - behind)


@functools.lru_cache(maxsize=64)
def _cover(kind: str, radius: float, tilt: float, shading: float) -> tuple[Plane, Plane]:
    """Coverage of the object (0 … 1) and its brightness (about 1) for each pixel of a square."""
    reach = math.ceil(1.5 * radius + 1)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    inside = _inside(kind, x, y, radius, tilt)
    cover = np.clip(inside + 0.5, 0, 1)
    rim = np.clip(inside / (0.16 * radius), 0, 1)  # darker towards the edge
    shade = (0.62 + 0.38 * rim) * (1 + 0.12 * _along(x, y, shading) / radius) * _marks(kind, x, y, radius, tilt)
    return np.asarray(cover, dtype=np.float32), np.asarray(shade, dtype=np.float32)


def _marks(kind: str, x: Plane, y: Plane, radius: float, tilt: float) -> Plane:
    """Brightness of marks too fine for low resolution: a ball has a highlight, a box a dark lid."""
    if kind == "ball":
        shine = np.hypot(_along(x, y, tilt) + 0.3 * radius, _along(x, y, tilt + math.pi / 2) + 0.3 * radius)
        return np.asarray(1 + 0.5 * np.clip(1.4 - 4 * shine / radius, 0, 1))
    if kind == "box":
        lid = np.maximum(abs(_along(x, y, tilt)), abs(_along(x, y, tilt + math.pi / 2)))
        return np.asarray(1 - 0.5 * np.clip(1 + (0.42 * radius - lid), 0, 1))
    return np.ones_like(x)


def _inside(kind: str, x: Plane, y: Plane, radius: float, tilt: float) -> Plane:
    """Approximate distance to the object's outline in pixels, positive inside."""
    across, along = abs(_along(x, y, tilt)), abs(_along(x, y, tilt + math.pi / 2))
    if kind == "ball":
        return np.asarray(radius - np.hypot(x, y), dtype=np.float32)
    if kind == "box":
        return np.asarray(0.88 * radius - np.maximum(across, along))
    if kind == "ring":
        return np.asarray(0.3 * radius - abs(np.hypot(x, y) - 0.78 * radius), dtype=np.float32)
    if kind == "cross":
        return np.minimum(1.08 * radius - np.maximum(across, along), 0.36 * radius - np.minimum(across, along))
    return _inside_star(x, y, 1.45 * radius, tilt)


def _inside_star(x: Plane, y: Plane, tip: float, tilt: float) -> Plane:
    """A five-pointed star: inside are the points within at least four of the lines that join its tips."""
    first = second = np.full_like(x, np.inf)
    for point in range(5):
        distance = tip * math.cos(2 * math.pi / 5) - _along(x, y, tilt - math.pi / 2 + point * math.tau / 5)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    return second


@functools.lru_cache(maxsize=4)
def _backdrop(scene: Scene) -> Planes:
    """Read-only int16 [3, H + 2 MARGIN, W + 2 MARGIN]: the scene's lit colour with its texture."""
    random = generator(*scene.key, 0)
    height, width = scene.height + 2 * MARGIN, scene.width + 2 * MARGIN
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    unit = scene.height / 24  # pixels; the texture's grain
    blotches = _smooth_noise(height, width, cell=4 * unit, random=random) * random.uniform(4, 9)
    gradient = _along(x / width - 0.5, y / height - 0.5, random.uniform(0, math.tau)) * random.uniform(6, 22)
    texture = _texture(scene.ground, x, y, unit, random)
    base = np.array(_BASE[scene.ground]) * random.uniform(0.9, 1.08) * np.array(scene.light)
    planes = base[:, None, None] + (blotches + gradient + texture)[None]
    made: Planes = np.clip(planes, 0, 255).astype(np.int16)
    made.flags.writeable = False
    return made


def _texture(ground: str, x: Plane, y: Plane, unit: float, random: np.random.Generator) -> npt.NDArray[np.float64]:
    height, width = x.shape
    if ground == "grass":
        blades = _smooth_noise(height, width, cell=unit / 3, random=random)
        return np.asarray(blades * 11 + _smooth_noise(height, width, cell=unit, random=random) * 5)
    if ground == "sand":
        ripples = y / unit * 2 + 2 * _smooth_noise(height, width, cell=5 * unit, random=random)
        return np.asarray(random.normal(0, 5, size=x.shape) + 6 * np.sin(ripples))
    if ground == "bricks":
        row = np.floor(y / (2 * unit))
        column = (x + (row % 2) * 2 * unit) % (4 * unit)
        joints = (y % (2 * unit) < 0.3 * unit) | (column < 0.3 * unit)
        return np.where(joints, 20.0, -4.0) + random.normal(0, 2, size=x.shape)
    if ground == "clouds":
        puffs = _smooth_noise(height, width, cell=3 * unit, random=random)
        return 16 * np.maximum(puffs, 0) + 4 * _smooth_noise(height, width, cell=unit, random=random)
    wave = random.uniform(0.2, 0.8) / unit
    return np.asarray(random.uniform(2, 7) * np.sin(_along(x, y, random.uniform(0, math.tau)) * wave), dtype=np.float64)


def _along(x: Plane, y: Plane, angle: float) -> Plane:
    """Coordinate of a point along the direction ``angle`` (radians)."""
    return x * math.cos(angle) + y * math.sin(angle)


def _smooth_noise(height: int, width: int, *, cell: float, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """float64 [height, width]: normal values on a grid of ``cell`` pixels, interpolated bilinearly."""
    rows, columns = math.ceil(height / cell), math.ceil(width / cell)
    grid = random.normal(size=(rows + 1, columns + 1))
    i, row_share = np.divmod(np.arange(height) / cell, 1)
    j, column_share = np.divmod(np.arange(width) / cell, 1)
    upper, left = i.astype(int), j.astype(int)
    joined = grid[upper] * (1 - row_share)[:, None] + grid[upper + 1] * row_share[:, None]
    return np.asarray(joined[:, left] * (1 - column_share) + joined[:, left + 1] * column_share)
