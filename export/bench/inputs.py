"""Inputs of ``bench``: clips of a folder or rendered ones, and seeded tensors for single graphs."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...base.errors import DataError, MissingExtra
from ...base.files import printable_path
from ...runtime.bundle.graph_records import Graph
from ...runtime.video import find_video_files
from ..precision.calibration import calibration_clips

FRAMES, SIZE, RATE = 75, 240, 25  # of a clip that is made here: three seconds
_SEED = 20_261_125


def pick_clips(folder: Path, limit: int) -> list[Path]:
    """The first ``limit`` video files under ``folder``, by name; raises DataError ``no_clips`` when there is none."""
    found = find_video_files(folder)
    if not found:
        raise DataError(
            f"{printable_path(folder)} holds no video files",
            fix="give a folder of videos, or leave --videos out: clips are rendered then",
            code="no_clips",
        )
    return found[:limit]


def render_clips(folder: Path, count: int) -> list[Path]:
    """Write ``count`` seeded clips (MPEG-4, ``SIZE`` pixels square) in ``folder``."""
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", extra="agent") from error
    paths = []
    for number in range(count):
        rgb = calibration_clips(_SEED + number, clips=1, frames=FRAMES, size=SIZE, mean=0.0, std=1.0)[0]
        path = folder / f"clip{number:03d}.avi"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("mpeg4", rate=RATE)
            stream.height = stream.width = SIZE
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, RATE)
            stream.codec_context.thread_count = 1
            for index in range(FRAMES):
                image = np.ascontiguousarray((rgb[:, index] * 255).round().astype(np.uint8).transpose(1, 2, 0))
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = index
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        paths.append(path)
    return paths


def usual_feeds(graph: Graph, sizes: Mapping[str, int]) -> dict[str, npt.NDArray[np.generic]]:
    """Inputs of the right shapes: seeded noise for numbers, zeros for token ids, positions and mask."""
    generator = np.random.default_rng(0)
    feeds: dict[str, npt.NDArray[np.generic]] = {}
    for tensor in graph.inputs:
        shape = [_size(size, sizes) for size in tensor.shape]
        if tensor.dtype == "float32" and tensor.name != "mask":
            feeds[tensor.name] = generator.standard_normal(shape, dtype=np.float32)
        else:
            feeds[tensor.name] = np.zeros(shape, dtype=tensor.dtype)
    return feeds


def _size(size: int | str, sizes: Mapping[str, int]) -> int:
    """A number, or a sum of axes such as ``past + tokens``."""
    return size if isinstance(size, int) else sum(sizes[word.strip()] for word in size.split("+"))
