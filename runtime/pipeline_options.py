"""Concurrency of an extraction: decoder processes, clips in one run, captions at once. From memory and cores.

Embeddings do not depend on it; memory grows with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..base.errors import UsageError
from .bundle.graph_records import Graph

CPU_READERS = 3  # two or three keep a CPU's networks busy; each may hold 256 MB of frames (docs/benchmarks/speed.md)
CPU_CAPTIONS = 4  # at full size each holds 42 MB of keys and values
MOST_READERS = 64  # that are chosen; more may be asked for
MOST_ASKED = 1024
MOST_CAPTIONS = 128  # the largest batch of a text graph (export/graphs/spec.py)
READER_BYTES = 356 << 20  # of one decoder: 100 MB of its own, 256 MB of frames (DecodeLimits.held_bytes)
READERS_SHARE = 0.5  # of the machine's memory
CAPTIONS_SHARE = 0.125  # of the GPU's memory, for the captions' keys and values
USUAL_GPU_MB = 16_000  # where the GPU does not tell its memory
# GPU memory in GB, and the clips in one run up to there. A clip's activations and its keys and values take 0.2 GB.
BATCHES = ((6, 4), (12, 8), (40, 16), (math.inf, 32))


@dataclass(frozen=True)
class PipelineOptions:
    """Requested sizes; None: by ``choose_sizes``."""

    readers: int | None = None  # decoder processes
    batch: int | None = None  # clips in one run of a graph
    captions: int | None = None  # captions generated at once
    workers: int = 1  # extractions that share the machine's memory


@dataclass(frozen=True)
class PipelineSizes:
    """Sizes that an extraction uses; smaller where an engine takes no larger batch."""

    readers: int
    batch: int
    captions: int


@dataclass(frozen=True)
class PipelineMachine:
    """Facts that the sizes follow from."""

    cores: int  # that this extraction may use
    memory_bytes: int  # that it may use
    gpu_mb: int | None  # memory of the GPU that computes; None: the networks compute on the CPU
    caption_bytes: int = 0  # keys and values of one frame in the text graph; 0: not known


def choose_sizes(options: PipelineOptions, machine: PipelineMachine) -> PipelineSizes:
    """Fill what ``options`` leaves open.

    On a CPU the networks take all cores with one clip, and a few readers keep them busy. On a GPU machine the cores are
    free for readers, all but one.
    """
    batch, captions, readers = 1, CPU_CAPTIONS, min(machine.cores, CPU_READERS)
    if machine.gpu_mb is not None:
        batch = next(clips for gigabytes, clips in BATCHES if machine.gpu_mb < gigabytes * 1000)
        rows = CAPTIONS_SHARE * machine.gpu_mb * 1e6 / (machine.caption_bytes or 42e6)
        captions = max(CPU_CAPTIONS, min(MOST_CAPTIONS, 1 << int(math.log2(max(1.0, rows)))))
        fitting = int(READERS_SHARE * machine.memory_bytes / options.workers / READER_BYTES)
        readers = max(1, min(MOST_READERS, machine.cores - 1, fitting))
    return PipelineSizes(options.readers or readers, options.batch or batch, options.captions or captions)


def check_batch(batch: int, graphs: Iterable[Graph]) -> None:
    """Raise UsageError when ``batch`` clips are more than one of ``graphs`` was exported for."""
    largest = min((graph.axes["batch"].largest for graph in graphs if "batch" in graph.axes), default=batch)
    if batch > largest:
        raise UsageError(
            f"a batch of {batch} clips is more than this bundle's networks take at once, {largest}",
            fix=f"--batch {largest}, or fewer (agent.toml: batch in [work])",
        )


def caption_bytes(text: Graph) -> int:
    """Keys and values of one frame in graph ``text``: its image's and those of the window; 0 where the manifest does
    not give their shapes."""
    size = {"float16": 2, "bfloat16": 2}
    total = 0
    for tensor in text.inputs:
        if tensor.name.startswith(("cross_", "past_")):
            known = (part if isinstance(part, int) else text.axes[part].largest for part in tensor.shape[1:])
            total += math.prod(known) * size.get(tensor.dtype, 4)
    return total


def usual_rows(graph: Graph, gpu_mb: int) -> int:
    """Rows of a full run of ``graph`` on a GPU of ``gpu_mb`` MB (0: not known), by ``choose_sizes``: captions where the
    graph continues them, else clips."""
    kept = caption_bytes(graph)
    sizes = choose_sizes(PipelineOptions(), PipelineMachine(1, 0, gpu_mb or USUAL_GPU_MB, kept))
    return sizes.captions if kept else sizes.batch


def rounded_up(count: int) -> int:
    """The rows of a run on a device for ``count`` of them: the next power of two, so that few shapes occur; 0 for 0."""
    return 1 << (count - 1).bit_length() if count else 0
