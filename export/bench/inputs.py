"""Inputs of ``bench``: clips of a folder or rendered ones, and seeded tensors for single graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from ...base.errors import DataError, MissingExtra
from ...base.files import printable_path
from ...runtime.backends.session import Feed, Session
from ...runtime.bundle.graph_records import AxisRange, Graph
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


def usual_sizes(graph: Graph, batch: int, *, frames: int) -> dict[str, int]:
    """Sizes of the graph's axes for ``batch`` clips: usual ones, of the first of its uses that takes so many.

    ``frames``: candidate frames of a clip, which the graph ``keyframes`` reads at once.
    """
    wanted = {"batch": batch, "frames": batch * frames}

    def takes(axes: Mapping[str, AxisRange]) -> bool:
        return all(axes[word].smallest <= size <= axes[word].largest for word, size in wanted.items() if word in axes)

    every = [dict(graph.axes) | dict(use.axes) for use in graph.uses] or [dict(graph.axes)]
    axes = next((each for each in every if takes(each)), every[-1])
    sizes = {word: axis.usual for word, axis in axes.items()}
    # The graph's own range bounds them: an engine refuses what is outside.
    return sizes | {word: min(wanted[word], axes[word].largest) for word in wanted if word in axes}


def usual_feeds(graph: Graph, sizes: Mapping[str, int], session: Session) -> dict[str, Feed]:
    """Inputs of the right shapes and types: seeded noise for numbers and pixels, zeros for ids, positions and mask.

    ``session``: where a type that NumPy lacks (bfloat16) is made, as zeros.
    """
    generator = np.random.default_rng(0)
    feeds: dict[str, Feed] = {}
    for tensor in graph.inputs:
        shape = tuple(axis_size(size, sizes) for size in tensor.shape)
        if tensor.dtype == "uint8":
            feeds[tensor.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        elif tensor.dtype == "bfloat16":
            feeds[tensor.name] = session.rows(tensor.name, shape).first(shape[0])
        elif tensor.dtype in ("float32", "float16") and tensor.name != "mask":
            feeds[tensor.name] = generator.standard_normal(shape, dtype=np.float32).astype(tensor.dtype)
        else:
            feeds[tensor.name] = np.zeros(shape, dtype=tensor.dtype)
    return feeds


def smallest_output(graph: Graph, sizes: Mapping[str, int]) -> str:
    """The output with the fewest elements: fetching it waits for the run and takes the least."""
    return min(graph.outputs, key=lambda each: math.prod(axis_size(size, sizes) for size in each.shape)).name


def axis_size(size: int | str, sizes: Mapping[str, int]) -> int:
    """A number, or a sum of axes and numbers such as ``past + tokens``."""
    if isinstance(size, int):
        return size
    words = (word.strip() for word in size.split("+"))
    return sum(int(word) if word.isdigit() else sizes[word] for word in words)
