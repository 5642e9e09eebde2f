"""Small real video files for tests, made through PyAV. Not a test; see conftest.py."""

from fractions import Fraction
from pathlib import Path

import numpy as np


def scene(frames=40, width=96, height=64, seed=0, scenes=4, noise=0):
    """uint8 [frames, height, width, 3]: a bright square moving over backgrounds that change ``scenes`` times.

    ``noise``: grey levels, new in each frame; it makes the file larger.
    """
    random = np.random.default_rng(seed)
    backgrounds = random.integers(20, 160, (scenes, 1, 1, 3))
    rgb = np.empty((frames, height, width, 3), dtype=np.uint8)
    for index in range(frames):
        rgb[index] = backgrounds[index * scenes // frames] + random.integers(0, noise + 1, rgb.shape[1:])
        left = index * (width - 16) // max(frames - 1, 1)
        rgb[index, height // 3 : height // 3 + 16, left : left + 16] = (250, 240, 60)
    return rgb


def write_clip(path: Path, rgb=None, *, codec="mpeg4", rate=25, container=None, **shape) -> Path:
    """Encode frames (``scene(**shape)`` when not given) into ``path``; its folder is made."""
    import av

    rgb = scene(**shape) if rgb is None else rgb
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = rgb.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        for index, image in enumerate(rgb):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with a sound track only."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        stream.layout = "mono"
        for index in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            frame.pts = index * 1024
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path
