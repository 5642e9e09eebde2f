"""Content of a mini-world clip before a pixel is drawn: objects, places, sizes, motion, and true captions.

Places are in shares of the frame's short side from the frame's middle, x to the right, y downwards. Sizes,
places, phases, directions and colours vary widely and independently of the class, so that one frame shows the
object but hardly the motion.

Captions follow a small grammar, "a COLOUR OBJECT RELATION a COLOUR OBJECT [on|in GROUND]", the actor first. A plain
backdrop is not mentioned. Every word is in the small BLIP's vocabulary (export/weights/vocabulary.py), and
none names the motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

OBJECTS: Final[tuple[str, ...]] = ("ball", "box", "star", "ring", "cross")
MOTIONS: Final[tuple[str, ...]] = ("crossing", "lifting", "circling", "approaching", "swinging")
VIVID = {  # of actors, RGB
    "red": (225, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (240, 225, 50),
    "green": (50, 205, 60),
    "blue": (45, 85, 235),
    "purple": (175, 55, 215),
}
DULL = {"grey": (175, 175, 178), "brown": (72, 46, 30), "white": (238, 236, 230)}  # of distractors
GROUNDS = ("plain", "grass", "sand", "bricks", "clouds")
FRAME_SIZES = ((240, 180), (256, 192), (272, 208), (288, 216), (304, 228), (320, 240))  # (width, height), pixels
TOUCHING = 0.85  # of the sum of both radii; nearer than this, the actor is in front of the distractor

Path = npt.NDArray[np.float64]  # [T], one value per frame


@dataclass(frozen=True)
class Scene:
    """Properties that all clips of a group share, so that a file's header identifies its scene but not its class."""

    key: tuple[int, int]  # (seed, group), from which the backdrop is drawn
    width: int  # pixels, even
    height: int
    fps: int
    ground: str  # of GROUNDS
    light: tuple[float, float, float]  # gain of each colour channel
    codec: str  # libx264 or mpeg4


@dataclass(frozen=True, eq=False)
class SceneObject:
    """An object of a clip, with its path over the frames."""

    kind: str  # of OBJECTS
    colour: str  # of VIVID or DULL
    rgb: tuple[float, float, float]  # 0 … 255, a shade of that colour
    x: Path  # of its centre, shares of the short side
    y: Path
    radius: Path  # shares of the short side
    tilt: float  # radians


@dataclass(frozen=True, eq=False)
class ClipSpec:
    """Everything that is shown in a clip."""

    scene: Scene
    label: str  # f"{actor.kind}_{motion}"
    frames: int
    actor: SceneObject  # larger, of a vivid colour, does the class's motion
    other: SceneObject  # smaller, dull, of another kind, rests or drifts


def generator(*key: int) -> np.random.Generator:
    """An independent random generator per key, so that a clip does not depend on the others."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key[0], spawn_key=key[1:])))


def sample_scene(seed: int, group: int) -> Scene:
    """The scene of that group."""
    random = generator(seed, group)
    width, height = FRAME_SIZES[random.integers(len(FRAME_SIZES))]
    red, green, blue = (float(gain) for gain in random.uniform(0.92, 1.06, size=3))
    return Scene(
        key=(seed, group),
        width=width,
        height=height,
        fps=int(random.integers(15, 21)),
        ground=GROUNDS[random.integers(len(GROUNDS))],
        light=(red, green, blue),
        codec="mpeg4" if random.random() < 0.25 else "libx264",
    )


def sample_clip(seed: int, group: int, kind: str, motion: str, number: int) -> ClipSpec:
    """The clip of that class, group and number, 2.2 to 3.6 s long; it depends on these five values alone."""
    scene = sample_scene(seed, group)
    random = generator(seed, group, 1 + OBJECTS.index(kind), 1 + MOTIONS.index(motion), number)
    frames = round(scene.fps * random.uniform(2.2, 3.6))
    x, y, radius = _MOVES[motion](np.linspace(0, 1, frames), random)
    drift = random.uniform(-0.03, 0.03, size=2)
    x, y = x + drift[0] * np.linspace(0, 1, frames), y + drift[1] * np.linspace(0, 1, frames)
    actor = SceneObject(kind, *_shade(VIVID, random), x, y, radius, float(random.uniform(-0.35, 0.35)))
    other_kind = str(random.choice([name for name in OBJECTS if name != kind]))
    return ClipSpec(scene, f"{kind}_{motion}", frames, actor, _sample_other(other_kind, actor, scene, random))


def _shade(
    colours: dict[str, tuple[int, int, int]], random: np.random.Generator
) -> tuple[str, tuple[float, float, float]]:
    name = str(random.choice(sorted(colours)))
    shade = np.clip(np.array(colours[name]) * random.uniform(0.88, 1.05) + random.normal(0, 7, size=3), 0, 255)
    red, green, blue = shade.tolist()
    return name, (red, green, blue)


def _sample_other(kind: str, actor: SceneObject, scene: Scene, random: np.random.Generator) -> SceneObject:
    """The distractor, placed where the actor never hides much of it, as far as possible."""
    frames = len(actor.x)
    radius = float(random.uniform(0.095, 0.115))
    reach_x = scene.width / scene.height / 2 - radius
    step = random.uniform(-0.12, 0.12, size=2) * (random.random() < 0.6)
    best, best_gap = (np.zeros(frames), np.zeros(frames)), -math.inf
    for _ in range(40):
        start = random.uniform(-1, 1, size=2) * (min(reach_x, 0.5), 0.5 - radius)
        x = np.clip(start[0] + step[0] * np.linspace(0, 1, frames), -reach_x, reach_x)
        y = np.clip(start[1] + step[1] * np.linspace(0, 1, frames), radius - 0.5, 0.5 - radius)
        gap = float((np.hypot(actor.x - x, actor.y - y) - actor.radius - 0.3 * radius).min())
        if gap > best_gap:
            best, best_gap = (x, y), gap
        if gap > 0:
            break
    name, rgb = _shade(DULL, random)
    return SceneObject(kind, name, rgb, *best, np.full(frames, radius), float(random.uniform(-0.35, 0.35)))


Move = tuple[Path, Path, Path]  # x, y, radius


def _usual_radius(t: Path, random: np.random.Generator) -> Path:
    return np.full_like(t, math.exp(random.uniform(math.log(0.13), math.log(0.21))))


def _one_way(t: Path, random: np.random.Generator) -> Path:
    """A path from -1 to 1, or back, at slightly varying speed."""
    eased = t + random.uniform(-0.1, 0.1) * np.sin(math.tau * t)
    return np.asarray((2 * eased - 1) * random.choice((-1, 1)))


def _crossing(t: Path, random: np.random.Generator) -> Move:
    x = random.uniform(0.3, 0.44) * _one_way(t, random) + random.uniform(-0.05, 0.05)
    return x, np.full_like(t, random.uniform(-0.3, 0.3)), _usual_radius(t, random)


def _lifting(t: Path, random: np.random.Generator) -> Move:
    y = random.uniform(0.26, 0.38) * _one_way(t, random) + random.uniform(-0.05, 0.05)
    return np.full_like(t, random.uniform(-0.36, 0.36)), y, _usual_radius(t, random)


def _circling(t: Path, random: np.random.Generator) -> Move:
    reach = random.uniform(0.17, 0.28)
    angle = math.tau * (random.uniform() + random.choice((-1, 1)) * random.uniform(1.0, 1.7) * t)
    x, y = random.uniform(-0.14, 0.14), random.uniform(-0.1, 0.1)
    return x + reach * np.cos(angle), y + reach * np.sin(angle), _usual_radius(t, random)


def _approaching(t: Path, random: np.random.Generator) -> Move:
    first, last = random.uniform(0.11, 0.13), random.uniform(0.22, 0.27)
    x, y = random.uniform(-0.32, 0.32), random.uniform(-0.26, 0.26)
    return np.full_like(t, x), np.full_like(t, y), first * (last / first) ** t


def _swinging(t: Path, random: np.random.Generator) -> Move:
    length, widest = random.uniform(0.35, 0.5), random.uniform(0.55, 0.85)
    angle = widest * np.sin(math.tau * (random.uniform() + random.uniform(1.2, 2.0) * t))
    x, y = random.uniform(-0.14, 0.14), random.uniform(-0.2, 0.32)  # of its lowest point
    return x + length * np.sin(angle), y - length * (1 - np.cos(angle)), _usual_radius(t, random)


_MOVES: dict[str, Callable[[Path, np.random.Generator], Move]] = {
    "crossing": _crossing,
    "lifting": _lifting,
    "circling": _circling,
    "approaching": _approaching,
    "swinging": _swinging,
}


_ON_GROUND = {"plain": "", "grass": " on grass", "sand": " on sand", "bricks": " on bricks", "clouds": " in clouds"}


def caption_frame(spec: ClipSpec, frame: int) -> str:
    """The true caption of frame ``frame`` (from 0), such as "a red ball above a grey box on grass"."""
    return f"{_named(spec.actor)} {relation(spec, frame)} {_named(spec.other)}{_ON_GROUND[spec.scene.ground]}"


def relation(spec: ClipSpec, frame: int) -> str:
    """The actor's position relative to the distractor, along the axis of the larger distance."""
    x = spec.actor.x[frame] - spec.other.x[frame]
    y = spec.actor.y[frame] - spec.other.y[frame]
    if math.hypot(x, y) < TOUCHING * (spec.actor.radius[frame] + spec.other.radius[frame]):
        return "in front of"
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


def caption_nouns(caption: str) -> tuple[str, ...]:
    """The objects of a caption in its order, such as ("ball", "box")."""
    return tuple(word for word in caption.split() if word in OBJECTS)


def class_captions() -> dict[str, str]:
    """A fixed caption per class for CLIP's retrieval (docs/paper.md, reading 10)."""
    return {f"{kind}_{motion}": f"a {kind} {motion}" for kind in OBJECTS for motion in MOTIONS}


def _named(thing: SceneObject) -> str:
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return f"{article} {thing.colour} {thing.kind}"
