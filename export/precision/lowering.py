"""One planned graph to one file in the precision that was chosen for it, and proof that it is."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import InvariantError, MissingExtra
from ...runtime.bundle.manifest import FramePreprocessing
from ...runtime.bundle.records import WITH_INT8_WEIGHTS, Graph
from ..graphs.export import GraphSpec, check_and_save, write_graph
from .calibration import CALIBRATION_SEED, CalibrationClips, seeded_footage
from .choice import FP32, PrecisionChoice
from .dtypes import PRODUCT_OF, PRODUCTS, check_ledger, read_ledger
from .half import half_module
from .int8 import ONNX_FORM, TENSORRT_FORM, Int8Form, quantise_static, quantise_weights

LOOKS = 4  # frames of a calibration clip that an image encoder is calibrated on
STATIC = ("vision", "clip", "cnn")  # int8 with scales from calibration clips; of the others weights alone are int8


@dataclass(frozen=True)
class Lowering:
    """How the graphs of one bundle are lowered. The default lowers none."""

    choice: PrecisionChoice = FP32
    form: Int8Form = ONNX_FORM
    footage: CalibrationClips = dataclasses.field(default_factory=lambda: seeded_footage(CALIBRATION_SEED))
    threads: int | None = None


def plan_lowering(
    choice: PrecisionChoice, backend: str, own_clips: CalibrationClips | None, threads: int | None = None
) -> Lowering:
    """``backend`` decides the form of int8: ``tensorrt`` wants other pairs than ONNX Runtime."""
    form = TENSORRT_FORM if backend == "tensorrt" else ONNX_FORM
    return Lowering(choice, form, own_clips or seeded_footage(CALIBRATION_SEED), threads)


def calibration_notes(choice: PrecisionChoice, own_clips: CalibrationClips | None) -> tuple[str, ...]:
    """What a person should know of the scales of int8."""
    drawn = [name for name in STATIC if choice.of(name) == "int8"]
    if own_clips is not None or not drawn:
        return ()
    return (
        f"the scales of {', '.join(drawn)} come from drawn clips; --calibration DIR with some clips like those of your "
        "silos comes nearer to fp32",
    )


def write_lowered(plan: GraphSpec, folder: Path, lowering: Lowering, frames: FramePreprocessing | None) -> Graph:
    """Export ``plan`` to ``folder/NAME.onnx`` in its chosen precision.

    ``frames``: how frames are prepared for the graph; None for a graph that sees none. Raises as
    ``write_graph``, and InvariantError when the file multiplies in something else than was chosen.
    """
    precision = lowering.choice.of(plan.name)
    if precision == "int8":
        return _write_int8(plan, folder, lowering, frames)
    if precision != "fp32":
        plan = dataclasses.replace(plan, module=half_module(plan.module, precision), precision=precision)
    graph = write_graph(plan, folder)
    check_ledger(plan.name, precision, graph.dtype_histogram)
    return graph


def _write_int8(plan: GraphSpec, folder: Path, lowering: Lowering, frames: FramePreprocessing | None) -> Graph:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", extra="export") from error
    with tempfile.TemporaryDirectory() as scratch:
        graph = write_graph(plan, Path(scratch))
        model = onnx.load(str(Path(scratch, graph.file)))
    if plan.name not in STATIC:  # text: bound by reading its weights, and its rows differ most
        expected, kind = quantise_weights(model), PRODUCT_OF["fp32"] + WITH_INT8_WEIGHTS
    else:
        if frames is None:
            raise InvariantError(f"graph '{plan.name}' is calibrated on frames, and nothing says how it reads them")
        feeds = _feeds(plan, lowering.footage, frames)
        expected, kind = quantise_static(model, feeds, lowering.form, threads=lowering.threads), "int8"
    path = folder / graph.file
    check_and_save(model, path)
    dtype_histogram = read_ledger(path)
    found = sum(count for operator, count in dtype_histogram.get(kind, {}).items() if operator in PRODUCTS)
    if found != expected or not found:
        raise InvariantError(f"graph '{plan.name}': {found} of {expected} products are {kind} in its file")
    return Graph(
        file=graph.file,
        opset=graph.opset,
        inputs=graph.inputs,
        outputs=graph.outputs,
        axes=graph.axes,
        precision="int8",
        dtype_histogram=dtype_histogram,
    )


def _feeds(plan: GraphSpec, footage: CalibrationClips, rule: FramePreprocessing) -> Iterator[dict[str, Any]]:
    (tensor,) = plan.inputs
    if tensor.name == "pixels":
        for pixels in footage.read(rule, LOOKS):
            yield {"pixels": pixels}
        return
    frames = int(tensor.shape[2])
    for pixels in footage.read(rule, frames):
        yield {"frames": np.ascontiguousarray(pixels.swapaxes(0, 1)[None])}
