"""Costs: parameters (Table 1), communication (equations 13 and 14), time per clip and stage, storage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...base.files import printable_path
from ...fedproto.head import HeadSpec
from . import printed_values
from .extraction import report_file
from .features import NAMES, READY, SINGLE, VARIANTS
from .inputs import ExperimentInputs
from .tables import Row, TableResult, Value

KEYS = {name: key for key, name in NAMES.items()}
COUNT_COLUMNS = (
    "frames", "input", "paper: input", "in FL (1 output)", "paper: in FL", "in FL (K classes)",
)  # fmt: skip


def table1(classes: int) -> TableResult:
    """Parameters of every extractor, counted from the networks, next to the printed ones.

    Raises MissingExtra without the extra ``export``.
    """
    from ...export.networks.extractors import EXTRACTORS, count_parameters

    counted = count_parameters()
    rows = []
    for printed in printed_values.TABLE_1:
        key = "+".join(KEYS.get(part, "") for part in printed.name.split("+"))
        extra: dict[str, Value] = {"paper: input": printed.input_dimension}
        extra |= {"frames": printed.frames, "paper: in FL": printed.fl_parameters}
        ours = None
        status = "not counted: trained on video by its own command"
        if key in EXTRACTORS:
            width = EXTRACTORS[key].dimension
            ours, status = counted[key], "counted"
            extra |= {"input": width, "in FL (1 output)": head_parameters(width, 1)}
            extra["in FL (K classes)"] = head_parameters(width, classes)
        rows.append(Row(printed.name, ours, ours, printed.base_parameters, status, note=printed.remark, extra=extra))
    notes = (
        f"BLIP counts its word embedding and output projection as two matrices; tied they are {BLIP_TIED:,} in all.",
        f"K is {classes}. The paper's counts are of a head with one output unit.",
        *_communication_notes(classes),
    )
    return TableResult("table1", "Table 1: frozen parameters", tuple(rows), notes, COUNT_COLUMNS, "parameters")


def _communication_notes(classes: int) -> tuple[str, ...]:
    lines = []
    for outputs, whose in ((1, "the paper's head, 1 output (eqs. 13, 14)"), (classes, f"{classes} classes")):
        found = communication(outputs)
        lines.append(
            f"{whose}: {found.head:,} parameters, {found.bytes_fp32 / 1e6:.2f} MB; saved against "
            f"sending the whole model {found.saved_against_full_model:.1%}, against KD's ResNet-18 "
            f"{found.saved_against_kd:.1%}, against a 3-D ResNet-18 {found.saved_against_3d_student:.1%}"
        )
    return tuple(lines)


def resources(inputs: ExperimentInputs) -> TableResult:
    """Milliseconds per clip and stage as measured by the extraction, bytes per round, bytes on disk."""
    printed = printed_values.RESOURCES
    rows: list[Row] = []
    folder = inputs.data.source.folder
    for name in (*SINGLE, *VARIANTS) if folder is not None else ():
        assert folder is not None
        if inputs.data.state(name) != READY:
            rows.append(_cost(NAMES[name], None, inputs.data.state(name)))
            continue
        file = report_file(folder, name)
        report = json.loads(file.read_bytes()) if file.is_file() else {}
        if not report:
            rows.append(_cost(NAMES[name], None, "not measured"))
            continue
        stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in report.get("stages_ms", {}).items() if ms)
        paper_s = {"blip": printed.blip_s, "slow": printed.slow_s}.get(name)
        note = f"the paper: {1000 * paper_s:,.0f} ms per clip on an A100" if paper_s else ""
        extra: dict[str, Value] = {
            "ms per clip": round(report["ms_per_clip"], 1),
            "stages, ms": stages,
            "peak MB": round(report["peak_mb"]),
            "bundle MB": _size_mb(folder / "bundles" / name),
            "store MB": _size_mb(folder / f"{name}.sqlite"),
        }
        rows.append(_cost(NAMES[name], extra, "measured", note))
    classes = len(inputs.data.labels)
    width = sum(inputs.data.widths(inputs.data.main))
    head = head_parameters(width, classes)
    note = f"fp32, {width} inputs, {classes} classes; both ways {8 * head:,} bytes per silo and round"
    rows.append(_cost("Classifier", {"bundle MB": round(4e-6 * head, 3)}, f"{head:,} parameters", note))
    notes = (
        f"The paper: peak memory Slow {printed.slow_mb} MB, BLIP {printed.blip_mb} MB; storage BLIP "
        f"{printed.blip_storage_mb} MB, Slow {printed.slow_storage_mb} MB, MLP "
        f"{printed.mlp_storage_mb} MB ({printed.remark}).",
        "Time per clip is the wall time of this machine's last extraction, including hashing and storing.",
        *_communication_notes(classes),
    )
    if inputs.data.source.store is not None:
        notes = (f"Only {printable_path(inputs.data.source.store)} was given, which holds no times.", *notes)
    columns = ("ms per clip", "stages, ms", "peak MB", "bundle MB", "store MB")
    return TableResult("resources", "Resources", tuple(rows), notes, columns, "ms")


def _cost(name: str, extra: dict[str, Value] | None, status: str, note: str = "") -> Row:
    milliseconds = (extra or {}).get("ms per clip")
    last = float(milliseconds) if isinstance(milliseconds, int | float) else None
    return Row(name, last, last, None, status, note=note, extra=extra or {})


def _size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6, 2)


BLIP_PARAMETERS = 247_414_076  # word embedding and output projection counted as two matrices
BLIP_TIED = 223_971_644
SLOW_PARAMETERS = 32_454_096
KD_STUDENT = 11_689_512  # ResNet-18, 1000 classes: two-dimensional
RESNET_3D_18 = 33_371_472
FLAMEST_INPUTS = 768 + 2048


def head_parameters(inputs: int, outputs: int, hidden: tuple[int, ...] = (512, 256)) -> int:
    """Parameters of the perceptron ``[inputs, *hidden, outputs]``: 1,573,889 for 2816 and 1."""
    return HeadSpec(inputs, outputs, hidden).parameters


def saving(whole: int, sent: int) -> float:
    """Share of the ``whole`` parameters that need not be sent, 0 to 1."""
    return (whole - sent) / whole


@dataclass(frozen=True)
class Communication:
    """Communication cost of a head with ``outputs`` classes; savings are shares from 0 to 1."""

    outputs: int
    head: int
    bytes_fp32: int
    saved_against_full_model: float  # eq. 13
    saved_against_kd: float  # eq. 14, the printed two-dimensional ResNet-18
    saved_against_3d_student: float  # a 3-D ResNet-18, 33.4 M


def communication(outputs: int, *, frozen: int = BLIP_PARAMETERS + SLOW_PARAMETERS) -> Communication:
    """Equations 13 and 14. The paper's head has one output (99.4 % and 86.5 %); a classifier of K classes has K."""
    head = head_parameters(FLAMEST_INPUTS, outputs)
    return Communication(
        outputs,
        head,
        4 * head,
        saving(frozen + head, head),
        saving(KD_STUDENT, head),
        saving(RESNET_3D_18, head),
    )
