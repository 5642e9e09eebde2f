"""Write a graph to a file in the precision that was chosen for it, and prove that it computes in it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...base.errors import InvariantError, MissingExtra
from ...runtime.bundle.graph_records import WITH_INT8_WEIGHTS, Graph
from ...runtime.bundle.manifest import FramePreprocessing
from ..graphs.export import check_and_save, write_graph
from ..graphs.spec import GraphSpec
from .calibration import CALIBRATION_SEED, CalibrationClips, seeded_clips
from .choice import FP32, PrecisionChoice
from .dtypes import MATMUL_DTYPE, MATMULS, check_precision, read_dtype_histogram
from .half import half_spec
from .int8 import ONNX_FORM, TENSORRT_FORM, Int8Form, quantise_static, quantise_weights

FRAMES_OF_CLIP = 4  # frames of a calibration clip that an image encoder is calibrated on
STATIC = ("vision", "clip", "cnn")  # int8 with scales from calibration clips; of the others weights alone are int8


@dataclass(frozen=True)
class Lowering:
    """Settings by which the graphs of one bundle are lowered. The default lowers none."""

    choice: PrecisionChoice = FP32
    form: Int8Form = ONNX_FORM
    clips: CalibrationClips = dataclasses.field(default_factory=lambda: seeded_clips(CALIBRATION_SEED))
    threads: int | None = None


def choose_lowering(
    choice: PrecisionChoice, backend: str, own_clips: CalibrationClips | None, threads: int | None = None
) -> Lowering:
    """Return the settings; ``backend`` decides the form of int8: TensorRT wants other pairs than ONNX Runtime."""
    form = TENSORRT_FORM if backend == "tensorrt" else ONNX_FORM
    return Lowering(choice, form, own_clips or seeded_clips(CALIBRATION_SEED), threads)


def calibration_notes(choice: PrecisionChoice, own_clips: CalibrationClips | None) -> tuple[str, ...]:
    """Remarks for the person on the scales of int8."""
    drawn = [name for name in STATIC if choice.of(name) == "int8"]
    if own_clips is not None or not drawn:
        return ()
    return (
        f"the scales of {', '.join(drawn)} come from drawn clips; --calibration DIR with some clips like those of your "
        "silos comes nearer to fp32",
    )


def write_lowered(spec: GraphSpec, folder: Path, lowering: Lowering, frames: FramePreprocessing | None) -> Graph:
    """Export ``spec`` to ``folder/NAME.onnx`` in its chosen precision.

    ``frames``: how frames are prepared for the graph; None for a graph that sees none. Raises as
    ``write_graph``, and InvariantError when the file multiplies in something else than was chosen.
    """
    precision = lowering.choice.of(spec.name)
    spec = half_spec(spec, precision, text=lowering.choice.of("text"))
    if precision == "int8":
        return _write_int8(spec, folder, lowering, frames)
    graph = write_graph(spec, folder)
    check_precision(spec.name, precision, graph.dtype_histogram)
    return graph


def _write_int8(spec: GraphSpec, folder: Path, lowering: Lowering, frames: FramePreprocessing | None) -> Graph:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", extra="export") from error
    with tempfile.TemporaryDirectory() as scratch:
        graph = write_graph(spec, Path(scratch))
        model = onnx.load(str(Path(scratch, graph.file)))
    if spec.name not in STATIC:  # text: bound by reading its weights, and its rows differ most
        expected, kind = quantise_weights(model), MATMUL_DTYPE["fp32"] + WITH_INT8_WEIGHTS
    else:
        if frames is None:
            raise InvariantError(f"graph '{spec.name}' is calibrated on frames, and no preprocessing is given")
        feeds = _feeds(spec, lowering.clips, frames)
        expected, kind = quantise_static(model, feeds, lowering.form, threads=lowering.threads), "int8"
    path = folder / graph.file
    check_and_save(model, path)
    histogram = read_dtype_histogram(path)
    found = sum(count for operator, count in histogram.get(kind, {}).items() if operator in MATMULS)
    if found != expected or not found:
        raise InvariantError(
            f"graph '{spec.name}': {found} of {expected} matmuls and convolutions are {kind} in its file"
        )
    return msgspec.structs.replace(graph, precision="int8", dtype_histogram=histogram)


def _feeds(spec: GraphSpec, clips: CalibrationClips, rule: FramePreprocessing) -> Iterator[dict[str, Any]]:
    (tensor,) = spec.inputs
    if tensor.name == "pixels":
        for rgb in clips.read(rule, FRAMES_OF_CLIP):
            yield {"pixels": rgb}
        return
    for rgb in clips.read(rule, int(tensor.shape[1])):
        yield {"frames": rgb[None]}
