"""A few tiny clips, and a progress that counts and can interrupt."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


class CountingProgress:
    """Progress that counts its steps and can interrupt like Ctrl-C."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps, self.stop_after = 0, stop_after

    def advance(self, steps: int = 1) -> None:
        self.steps += steps
        if self.stop_after is not None and self.steps >= self.stop_after:
            raise KeyboardInterrupt

    def describe(self, text: str) -> None:
        pass


def _write_clip(path: Path, hue: int, moves: bool, seed: int) -> None:
    """A file of ten frames: a square of one colour that rests or moves, on noise."""
    import av

    random = np.random.Generator(np.random.PCG64(seed))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            picture = random.integers(0, 60, size=(48, 64, 3), dtype=np.uint8)
            left = 4 + (4 * number if moves else 16)
            picture[16:32, left : left + 16, hue] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(file.getvalue())


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Three classes in six scenes, two clips of each class and scene. Read only."""
    folder = tmp_path_factory.mktemp("clips")
    lines = ["path,label,group"]
    for label, (hue, moves) in {"red_resting": (0, False), "red_moving": (0, True), "blue_resting": (2, False)}.items():
        for number in range(12):
            name = f"{label}-{number}.mp4"
            _write_clip(folder / name, hue, moves, number)
            lines.append(f"{name},{label},scene-{number // 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def write_clip() -> Callable[[Path, int, bool, int], None]:
    """``write_clip(path, hue, moves, seed)`` writes a small video file."""
    return _write_clip


@pytest.fixture(scope="session")
def counting() -> type[CountingProgress]:
    """``counting(stop_after=None)`` makes a progress that counts."""
    return CountingProgress
