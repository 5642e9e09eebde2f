"""Write a graph to a file in the precision that was chosen for it, and prove that it computes in it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle.graph_records import Graph
from ..graphs.export import write_graph
from ..graphs.spec import GraphSpec
from ..parity.chain import ModuleSession
from .calibration import CalibrationClips, CalibrationSets, calibration_sets
from .choice import FP32, PrecisionChoice
from .draft import Calibrated, Int8Draft, Int8Settings, draft_int8, first_row, spread
from .dtypes import check_precision
from .half import half_spec
from .int8 import ONNX_FORM, TENSORRT_FORM, Int8Form
from .overflow import fits_fp16, largest_magnitude, magnitude_note
from .ranges import Feeds

STATIC = (
    "vision",
    "clip",
    "cnn",
    "cnn2",
)  # int8 with scales from calibration clips; of the others weights alone are int8
HELD_OUT_FEEDS = 12  # of a graph, on which its own outputs are compared with fp32's


@dataclass(frozen=True)
class Lowering:
    """Settings by which the graphs of one bundle are lowered. The default lowers none."""

    choice: PrecisionChoice = FP32
    form: Int8Form = ONNX_FORM
    clips: CalibrationSets = dataclasses.field(default_factory=lambda: calibration_sets(None))
    threads: int | None = None


def choose_lowering(
    choice: PrecisionChoice, backend: str, own_clips: CalibrationClips | None, threads: int | None = None
) -> Lowering:
    """Return the settings; ``backend`` decides the form of int8: TensorRT wants other pairs than ONNX Runtime."""
    form = TENSORRT_FORM if backend == "tensorrt" else ONNX_FORM
    return Lowering(choice, form, calibration_sets(own_clips), threads)


def calibration_notes(choice: PrecisionChoice, own_clips: CalibrationClips | None) -> tuple[str, ...]:
    """Remarks for the person on the scales of int8."""
    drawn = [name for name in STATIC if choice.of(name) == "int8"]
    if own_clips is not None or not drawn:
        return ()
    return (
        f"the scales of {', '.join(drawn)} come from drawn clips; --calibration DIR with some clips like those of your "
        "silos comes nearer to fp32",
    )


def measure_fp16(spec: GraphSpec, lowering: Lowering, feeds: Sequence[Feeds]) -> tuple[Lowering, str]:
    """Measure whether fp16 has room for the values of ``spec``; the settings with what follows from it, and a note.

    A graph that was not asked for by name gets another precision where it has not (overflow.py).
    """
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        graph = write_graph(spec, Path(scratch))
        model = onnx.load(str(Path(scratch, graph.file)))
    largest, _ = largest_magnitude(model, feeds, threads=lowering.threads)
    choice, note = lowering.choice, magnitude_note(spec.name, largest)
    if fits_fp16(largest):
        return lowering, note
    if spec.name in choice.named:
        return lowering, f"{note}. It is fp16 as asked; the comparison with PyTorch decides"
    instead = choice.instead_of_fp16
    changed = dataclasses.replace(lowering, choice=choice.with_graphs({spec.name: instead}))
    return changed, f"{note}. It is {instead}; for fp16 all the same: {spec.name}=fp16"


def write_lowered(spec: GraphSpec, folder: Path, lowering: Lowering) -> Graph:
    """Export ``spec`` to ``folder/NAME.onnx`` in its chosen precision, which is not int8 (``draft_lowered``).

    Raises as ``write_graph``, and InvariantError when the file multiplies in something else than was chosen.
    """
    precision = lowering.choice.of(spec.name)
    graph = write_graph(half_spec(spec, precision, text=lowering.choice.of("text")), folder)
    check_precision(spec.name, precision, graph.dtype_histogram)
    return graph


def draft_lowered(
    spec: GraphSpec,
    scratch: Path,
    lowering: Lowering,
    feeds: Sequence[Feeds],
    held_out: Sequence[Feeds],
    tell: Callable[[float], None],
) -> Int8Draft:
    """Export ``spec`` to ``scratch/NAME.onnx`` and calibrate its int8 on ``feeds``.

    ``held_out``: feeds that it is compared with fp32 on. ``tell``: called with the share of ``feeds`` that are done.
    Raises as ``write_graph`` and ``observe``.
    """
    wide = half_spec(spec, lowering.choice.rest, text=lowering.choice.of("text"))
    graph = write_graph(wide, scratch)
    reference, chosen = ModuleSession(spec), [first_row(each) for each in spread(held_out, HELD_OUT_FEEDS)]
    expected = [reference.run(each) for each in chosen]
    calibrated = Calibrated(feeds, chosen, expected, lowering.clips.held_out.clips)
    settings = Int8Settings(lowering.form, static=spec.name in STATIC, threads=lowering.threads)
    return draft_int8(graph, scratch / graph.file, calibrated, settings, tell=tell)
