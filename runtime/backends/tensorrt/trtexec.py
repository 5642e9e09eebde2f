"""The line of ``trtexec``, NVIDIA's own tool, that repeats the build of an engine: to compare, or to report a fault."""

from __future__ import annotations

import shlex
from pathlib import Path

from ...bundle.graph_records import EngineOptions, Graph
from .profile import InputRange, Shape, profiles

_HARDWARE = {"none": "none", "ampere+": "ampere+", "same-cc": "sameComputeCapability"}


def trtexec_command(
    onnx: Path, graph: Graph, options: EngineOptions, *, timing_cache: Path | None = None, run: bool = True
) -> str:
    """The command, as it is typed. ``run``: it also runs and times the engine, at the first profile's usual shapes.

    The options are those of TensorRT 10 (trtexec --help); should a newer one have no --stronglyTyped, leave it out.
    """
    words = ["trtexec", f"--onnx={onnx}", "--stronglyTyped", f"--builderOptimizationLevel={options.opt_level}"]
    words += [] if options.tf32 else ["--noTF32"]
    words += ["--versionCompatible"] if options.version_compatible else []
    words += ["--stripWeights"] if options.strip_weights else []
    if options.hardware_compat != "none":
        words.append(f"--hardwareCompatibilityLevel={_HARDWARE[options.hardware_compat]}")
    if options.workspace_mb is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mb}M")
    words += ["--profilingVerbosity=detailed"] if options.detailed else []
    every = profiles(graph, options.max_batch, options.usual_batch)
    for number, profile in enumerate(every):
        words += [f"--profile={number}"] if len(every) > 1 else []
        moving = [one for one in profile.inputs if one.smallest != one.largest]
        if moving or len(every) > 1:
            words += _shapes(moving or list(profile.inputs))
    if timing_cache is not None:
        words.append(f"--timingCacheFile={timing_cache}")
    words += ["--useCudaGraph", "--noDataTransfers"] if run else ["--skipInference"]
    return shlex.join(words)


def _shapes(inputs: list[InputRange]) -> list[str]:
    def spec(option: str, sizes: list[Shape]) -> str:
        named = zip((one.name for one in inputs), sizes, strict=True)
        return f"--{option}=" + ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in named)

    return [
        spec("minShapes", [one.smallest for one in inputs]),
        spec("optShapes", [one.usual for one in inputs]),
        spec("maxShapes", [one.largest for one in inputs]),
    ]
