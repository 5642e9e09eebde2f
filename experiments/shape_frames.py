"""The mini-world's pictures: a scene's backdrop, and an object that moves before it, frame by frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]  # [H, W, 3], RGB
Planes = npt.NDArray[np.int16]  # [3, H, W]: while it is painted, a picture is three planes, which is quicker
Cover = npt.NDArray[np.float32]  # [H, W], how much of each pixel the object covers, 0 … 1

OBJECTS = {"ball": (255, 140, 60), "box": (90, 240, 80), "star": (235, 120, 255)}  # and their colours, RGB
MOTIONS = ("sideways", "approaching")
FRAME_SIZES = ((160, 160), (176, 144), (200, 160), (208, 176), (224, 168), (240, 180))  # (width, height), pixels
SHAKE = 3  # pixels that the camera may be off, each way
GRAINS = 32  # pixels by which the sensor's noise is shifted from frame to frame, at most


@dataclass(frozen=True, eq=False)
class Scene:
    """What all clips of a group share."""

    width: int  # pixels, even
    height: int
    fps: int
    frames: int
    backdrop: Planes  # SHAKE wider on each side; as lit
    light: npt.NDArray[np.float64]  # [3], gain of each colour channel


@dataclass(frozen=True)
class Body:
    """The object of one clip."""

    thing: str  # key of OBJECTS
    radius: float  # pixels, at its usual distance
    tilt: float  # radians


def draw_scene(random: np.random.Generator) -> Scene:
    """A scene of a random size, rate (15 to 30 per second), length (1.5 to 3 s), backdrop and light."""
    width, height = FRAME_SIZES[random.integers(len(FRAME_SIZES))]
    fps = int(random.integers(15, 31))
    frames = round(fps * random.uniform(1.5, 3.0))
    light = random.uniform(0.94, 1.06, size=3)
    backdrop = np.clip(_backdrop(width + 2 * SHAKE, height + 2 * SHAKE, random) * light[:, None, None], 0, 255)
    return Scene(width, height, fps, frames, backdrop.astype(np.int16), light)


def draw_clip(scene: Scene, thing: str, motion: str, random: np.random.Generator) -> Iterator[Image]:
    """The frames of one clip in order: ``thing`` of OBJECTS in ``motion`` of MOTIONS.

    Size, tilt, shade, place, speed, phase, sensor noise and camera shake are drawn from ``random``.
    """
    short = min(scene.width, scene.height)
    body = Body(thing, random.uniform(0.21, 0.26) * short, tilt=random.uniform(-0.15, 0.15))
    colour = np.clip(np.array(OBJECTS[thing]) + random.normal(0, 12, size=3), 0, 255) * scene.light
    wobble = np.cumsum(random.normal(0, 0.5, size=(scene.frames, 2)), axis=0)
    shakes = np.clip(np.rint(wobble), -SHAKE, SHAKE).astype(int) + SHAKE
    noise = random.normal(0, random.uniform(1, 4), size=(scene.height + GRAINS, scene.width + GRAINS))
    grains = np.rint(noise).astype(np.int16)
    offsets = random.integers(0, GRAINS, size=(scene.frames, 2))
    poses = _sideways(scene, body, random) if motion == "sideways" else _approaching(scene, body, random)
    for (cover, x, y), (dx, dy), (gx, gy) in zip(poses, shakes, offsets, strict=True):
        frame = scene.backdrop[:, dy : dy + scene.height, dx : dx + scene.width].copy()
        _paint(frame, cover, colour, x, y)
        frame += grains[gy : gy + scene.height, gx : gx + scene.width]
        planes = np.clip(frame, 0, 255, out=frame).astype(np.uint8)
        yield np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _swing(scene: Scene, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """float64 [frames + 1], -1 … 1: there and back one and a half to two and a half times, from any phase on.

    Frame i lasts from value i to value i + 1: the shutter is open all the while, as a slow camera's,
    and what moves fast is smeared.
    """
    phase = np.linspace(0, random.uniform(1.5, 2.5), scene.frames + 1) + random.uniform()
    return np.cos(math.tau * phase)


def _sideways(scene: Scene, body: Body, random: np.random.Generator) -> Iterator[tuple[Cover, int, int]]:
    """From edge to edge at one height. Per frame: the cover and its upper left corner."""
    sharp = _cover(body, body.radius, edge=1)
    half = len(sharp) // 2
    reach = scene.width / 2 - 0.8 * body.radius  # of the centre; it leaves the picture a little at the ends
    xs = np.rint(scene.width / 2 + reach * _swing(scene, random)).astype(int) - half
    y = round(scene.height * random.uniform(0.42, 0.58)) - half
    for start, end in itertools.pairwise(xs.tolist()):
        yield _smeared(sharp, abs(end - start)), min(start, end), y


def _approaching(scene: Scene, body: Body, random: np.random.Generator) -> Iterator[tuple[Cover, int, int]]:
    """Towards the camera and back, so growing and shrinking. Per frame: the cover and its upper left corner."""
    nearest, farthest = 2.05 * body.radius, 0.45 * body.radius
    radii = farthest + (nearest - farthest) * (1 + _swing(scene, random)) / 2
    x, y = np.rint(np.array([scene.width, scene.height]) * random.uniform(0.42, 0.58, size=2)).astype(int)
    for start, end in itertools.pairwise(radii.tolist()):
        cover = _cover(body, (start + end) / 2, edge=1 + abs(end - start))
        half = len(cover) // 2
        yield cover, int(x) - half, int(y) - half


def _smeared(cover: Cover, length: int) -> Cover:
    """``cover`` averaged over a move of ``length`` pixels to the right, by which it grows wider."""
    if length == 0:
        return cover
    total = np.cumsum(np.pad(cover, [(0, 0), (length + 1, length)]), axis=1)
    return np.asarray((total[:, length + 1 :] - total[:, : -length - 1]) / (length + 1), dtype=np.float32)


def _paint(frame: Planes, cover: Cover, colour: npt.NDArray[np.float64], x: int, y: int) -> None:
    """Put the object with its upper left corner at (x, y) into ``frame``, the caller's own."""
    height, width = frame.shape[1:]
    rows = slice(max(0, y), min(height, y + cover.shape[0]))
    columns = slice(max(0, x), min(width, x + cover.shape[1]))
    seen = cover[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    behind = frame[:, rows, columns]
    frame[:, rows, columns] = behind + seen * (colour.astype(np.float32)[:, None, None] - behind)


def _cover(body: Body, radius: float, *, edge: float) -> Cover:
    """The object with that radius in the middle of a square, its edge softened over ``edge`` pixels."""
    reach = math.ceil(1.6 * radius + edge / 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    if body.thing == "ball":
        inside = radius - np.hypot(x, y)
    elif body.thing == "box":
        inside = 0.9 * radius - np.maximum(abs(_along(x, y, body.tilt)), abs(_along(x, y, body.tilt + math.pi / 2)))
    else:
        inside = _inside_star(x, y, 1.6 * radius, body.tilt)
    return np.asarray(np.clip(inside / edge + 0.5, 0, 1), dtype=np.float32)


def _inside_star(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], tip: float, tilt: float
) -> npt.NDArray[np.float32]:
    """How far inside a star of five points a pixel is, about; negative outside. ``tip``: its points' radius.

    Inside are the points within at least four of the five lines that join its tips: the second
    smallest of the five distances decides.
    """
    first = second = np.full_like(x, np.inf)
    for k in range(5):
        distance = tip * math.cos(2 * math.pi / 5) - _along(x, y, tilt - math.pi / 2 + k * math.tau / 5)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    return second


def _backdrop(width: int, height: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """float64 [3, height, width]: a dim colour under a gradient, stripes and soft blotches."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width, y / height
    gradient = _along(x - 0.5, y - 0.5, random.uniform(0, math.tau)) * random.uniform(5, 20)
    waves = random.uniform(3, 12) * math.tau
    stripes = np.sin(_along(x, y, random.uniform(0, math.tau)) * waves) * random.uniform(2, 9)
    blotches = _smooth_noise(width, height, cells=int(random.integers(4, 9)), random=random) * random.uniform(3, 7)
    base = random.uniform(60, 76) * random.uniform(0.92, 1.08, size=3)
    return np.asarray(base[:, None, None] + gradient + stripes + blotches, dtype=np.float64)


def _along(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], angle: float) -> npt.NDArray[np.float32]:
    """How far a point lies in the direction ``angle`` (radians)."""
    return x * math.cos(angle) + y * math.sin(angle)


def _smooth_noise(width: int, height: int, *, cells: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """float64 [height, width]: normal values on a coarse grid, joined bilinearly."""
    grid = random.normal(size=(cells + 1, cells + 1))
    rows, row_share = np.divmod(np.linspace(0, cells, height, endpoint=False), 1)
    columns, column_share = np.divmod(np.linspace(0, cells, width, endpoint=False), 1)
    i, j = rows.astype(int), columns.astype(int)
    upper = grid[i] * (1 - row_share)[:, None] + grid[i + 1] * row_share[:, None]
    joined = upper[:, j] * (1 - column_share) + upper[:, j + 1] * column_share
    return np.asarray(joined, dtype=np.float64)
