"""True captions of the mini-world's frames, from a small grammar.

    a COLOUR OBJECT RELATION a COLOUR OBJECT [on|in GROUND]

The actor comes first. A plain backdrop is not mentioned. Every word is in the small BLIP's vocabulary
(export/weights/vocabulary.py), and none of them says what moves.

What happens in a clip of the mini-world, before a pixel is drawn: who, where, how large, when.

Places are in shares of the frame's short side from the frame's middle, x to the right, y downwards.
Sizes, places, phases, directions and colours are drawn widely and apart from the class, so that one
frame tells the object but hardly the motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_GROUND = {"plain": "", "grass": " on grass", "sand": " on sand", "bricks": " on bricks", "clouds": " in clouds"}


def caption_frame(plan: ClipPlan, frame: int) -> str:
    """ "a red ball above a grey box on grass": what is to be seen in that frame (from 0)."""
    return f"{_named(plan.actor)} {relation(plan, frame)} {_named(plan.other)}{_GROUND[plan.scene.ground]}"


def relation(plan: ClipPlan, frame: int) -> str:
    """Where the actor is, seen from the distractor; the larger of both distances decides."""
    x = plan.actor.x[frame] - plan.other.x[frame]
    y = plan.actor.y[frame] - plan.other.y[frame]
    if math.hypot(x, y) < TOUCHING * (plan.actor.radius[frame] + plan.other.radius[frame]):
        return "in front of"
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


def caption_nouns(caption: str) -> tuple[str, ...]:
    """The objects that a caption names, in its order: ("ball", "box")."""

    return tuple(word for word in caption.split() if word in OBJECTS)


def class_captions() -> dict[str, str]:
    """One caption per class, written beforehand, for CLIP's retrieval (docs/paper.md, reading 10)."""

    return {f"{kind}_{motion}": f"a {kind} {motion}" for kind in OBJECTS for motion in MOTIONS}


def _named(thing: Thing) -> str:
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return f"{article} {thing.colour} {thing.kind}"


OBJECTS = ("ball", "box", "star", "ring", "cross")
MOTIONS = ("crossing", "lifting", "circling", "approaching", "swinging")
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
TOUCHING = 0.85  # of the sum of both radii: nearer than this, one is in front of the other

Path = npt.NDArray[np.float64]  # [T], one value per frame


@dataclass(frozen=True)
class Scene:
    """What all clips of a group share; a header tells a clip's scene and nothing of its class."""

    key: tuple[int, int]  # (seed, group): of its backdrop
    width: int  # pixels, even
    height: int
    fps: int
    ground: str  # of GROUNDS
    light: tuple[float, float, float]  # gain of each colour channel
    codec: str  # libx264 or mpeg4


@dataclass(frozen=True, eq=False)
class Thing:
    """An object of a clip, over its frames."""

    kind: str  # of OBJECTS
    colour: str  # of VIVID or DULL
    rgb: tuple[float, float, float]  # 0 … 255, a shade of that colour
    x: Path  # of its middle, shares of the short side
    y: Path
    radius: Path  # shares of the short side
    tilt: float  # radians


@dataclass(frozen=True, eq=False)
class ClipPlan:
    """All that is true of a clip."""

    scene: Scene
    label: str  # f"{actor.kind}_{motion}"
    frames: int
    actor: Thing  # larger, of a vivid colour, does the class's motion
    other: Thing  # smaller, dull, of another kind, rests or drifts


def generator(*key: int) -> np.random.Generator:
    """A stream of its own for every key: clips do not depend on which others are made."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key[0], spawn_key=key[1:])))


def plan_scene(seed: int, group: int) -> Scene:
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


def plan_clip(seed: int, group: int, kind: str, motion: str, number: int) -> ClipPlan:
    """The clip of that class, group and number: 2.2 to 3.6 s, drawn from these five values alone."""
    scene = plan_scene(seed, group)
    random = generator(seed, group, 1 + OBJECTS.index(kind), 1 + MOTIONS.index(motion), number)
    frames = round(scene.fps * random.uniform(2.2, 3.6))
    x, y, radius = _MOVES[motion](np.linspace(0, 1, frames), random)
    drift = random.uniform(-0.03, 0.03, size=2)
    x, y = x + drift[0] * np.linspace(0, 1, frames), y + drift[1] * np.linspace(0, 1, frames)
    actor = Thing(kind, *_shade(VIVID, random), x, y, radius, float(random.uniform(-0.35, 0.35)))
    other_kind = str(random.choice([name for name in OBJECTS if name != kind]))
    return ClipPlan(scene, f"{kind}_{motion}", frames, actor, _plan_other(other_kind, actor, scene, random))


def _shade(
    colours: dict[str, tuple[int, int, int]], random: np.random.Generator
) -> tuple[str, tuple[float, float, float]]:
    name = str(random.choice(sorted(colours)))
    shade = np.clip(np.array(colours[name]) * random.uniform(0.88, 1.05) + random.normal(0, 7, size=3), 0, 255)
    red, green, blue = shade.tolist()
    return name, (red, green, blue)


def _plan_other(kind: str, actor: Thing, scene: Scene, random: np.random.Generator) -> Thing:
    """The distractor, at a place where the actor never hides much of it, if there is one."""
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
    return Thing(kind, name, rgb, *best, np.full(frames, radius), float(random.uniform(-0.35, 0.35)))


Move = tuple[Path, Path, Path]  # x, y, radius


def _usual_radius(t: Path, random: np.random.Generator) -> Path:
    return np.full_like(t, math.exp(random.uniform(math.log(0.13), math.log(0.21))))


def _one_way(t: Path, random: np.random.Generator) -> Path:
    """-1 … 1, or back, at a speed that varies a little."""
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
