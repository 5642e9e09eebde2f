"""The stages of one clip's extraction, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator
from contextlib import contextmanager

from .manifest import Manifest, VisionLanguage

STAGES = ("decode", "keyframes", "prepare", "vision", "caption", "embed", "cnn")
_GRAPHS = {"keyframes": "keyframes", "vision": "vision", "caption": "text", "embed": "text", "cnn": "cnn"}


def stages_of(manifest: Manifest) -> tuple[str, ...]:
    """The stages that the extractor of this manifest goes through, in order."""
    passed = {"decode", "prepare"} | ({"cnn"} if manifest.cnn is not None else set())
    if manifest.vlm is not None or (manifest.cnn is not None and manifest.cnn.choice == "keyframes"):
        passed.add("keyframes")
    if manifest.vlm is not None:
        passed.add("vision")
    if isinstance(manifest.vlm, VisionLanguage):
        passed |= {"caption", "embed"}
    return tuple(stage for stage in STAGES if stage in passed)


def graph_of(stage: str, graphs: Container[str]) -> str | None:
    """Which of a bundle's ``graphs`` a stage runs; None where it runs none. CLIP's is seen in the stage ``vision``."""
    if stage == "vision" and "clip" in graphs:
        return "clip"
    if stage == "embed" and "words" in graphs:
        return "words"
    return _GRAPHS.get(stage)


@contextmanager
def timed(stages: dict[str, float], stage: str) -> Iterator[None]:
    """Add the block's wall time, milliseconds, to ``stages[stage]``."""
    start = time.perf_counter()
    yield
    stages[stage] += (time.perf_counter() - start) * 1e3
