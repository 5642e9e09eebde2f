"""True captions of the mini-world's frames, from a small grammar.

    a COLOUR OBJECT RELATION a COLOUR OBJECT [on|in GROUND]

The actor comes first. A plain backdrop is not mentioned. Every word is in the small BLIP's vocabulary
(export/weights/small_vocabulary.py), and none of them says what moves.
"""

from __future__ import annotations

import math

from .miniworld_plan import TOUCHING, ClipPlan, Thing

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
    from .miniworld_plan import OBJECTS

    return tuple(word for word in caption.split() if word in OBJECTS)


def class_captions() -> dict[str, str]:
    """One caption per class, written beforehand, for CLIP's retrieval (NOTES decision 10)."""
    from .miniworld_plan import MOTIONS, OBJECTS

    return {f"{kind}_{motion}": f"a {kind} {motion}" for kind in OBJECTS for motion in MOTIONS}


def _named(thing: Thing) -> str:
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return f"{article} {thing.colour} {thing.kind}"
