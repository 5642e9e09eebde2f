"""The options of TensorRT plans, as ``--backend tensorrt`` and ``flamest-export plans`` share them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.errors import UsageError
from ...runtime.bundle.records import EngineOptions, HardwareCompat

if TYPE_CHECKING:
    from collections.abc import Mapping

OptLevelOption = Annotated[
    int | None,
    typer.Option(
        "--opt-level",
        min=0,
        max=5,
        help="How long the builder searches: 0 builds fastest, 5 longest. 3 when not given.",
    ),
]
HardwareCompatOption = Annotated[
    str | None,
    typer.Option(
        "--hardware-compat",
        metavar="WHICH",
        help="Which GPUs the plans run on: none (this model only), ampere+ (Ampere and newer), same-cc (all of this "
        "compute capability; TensorRT 10.9 or newer). None when not given.",
    ),
]
VersionCompatibleOption = Annotated[
    bool | None,
    typer.Option(
        "--version-compatible",
        help="Plans that newer TensorRT of this major version runs too, and 11 where 10 built them; may be slower.",
    ),
]
StripWeightsOption = Annotated[
    bool | None,
    typer.Option(
        "--strip-weights",
        help="Small plans without weights: the node puts them in from the ONNX graph beside.",
    ),
]
Tf32Option = Annotated[
    bool | None,
    typer.Option(
        "--tf32/--no-tf32",
        help="Whether float32 products may round their inputs to 10 bits (faster on Ampere and newer). "
        "--no-tf32 when not given.",
    ),
]
WorkspaceOption = Annotated[
    int | None,
    typer.Option(
        "--workspace-mb",
        min=1,
        metavar="MIB",
        help="Memory that a kernel may use beside its tensors. All of the GPU's when not given.",
    ),
]
TimingCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache",
        metavar="FILE",
        help="Kernels' times of earlier builds, read and written: builds after the first are quicker. One per TensorRT "
        "and GPU in the plan cache when not given.",
    ),
]
PlanCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--plan-cache",
        metavar="DIR",
        help="Folder of this machine's own plans, for signed bundles. ~/.cache/flamest/plans when not given.",
    ),
]
PlansOption = Annotated[
    bool | None,
    typer.Option(
        "--plans/--no-plans",
        help="Whether --backend tensorrt builds plans now. --no-plans needs no GPU: flamest-export plans builds them "
        "on the machine that has one.",
    ),
]
HARDWARE: tuple[HardwareCompat, ...] = ("none", "ampere+", "same-cc")
PLAN_OPTIONS = (
    *("opt_level", "hardware_compat", "version_compatible", "strip_weights", "tf32", "workspace_mb"),
    *("timing_cache", "plan_cache", "with_plans"),
)
_FLAGS = {"with_plans": "--plans/--no-plans"}


def read_plan_options(given: Mapping[str, Any]) -> EngineOptions:
    """From the command line's values by parameter name; None is not given. Raises UsageError."""
    compat = given.get("hardware_compat")
    if compat is not None and compat not in HARDWARE:
        raise UsageError(
            f"--hardware-compat {compat}: expected one of {', '.join(HARDWARE)}",
            fix="flamest-export --backend tensorrt --hardware-compat ampere+ --out DIR",
        )
    chosen = {word: given[word] for word in EngineOptions.__struct_fields__ if given.get(word) is not None}
    return EngineOptions(**chosen)


def refuse_plan_options(given: Mapping[str, Any], backend: str | None) -> None:
    """Raises UsageError for options of plans in an export that builds none."""
    useless = [word for word in PLAN_OPTIONS if given.get(word) is not None]
    if backend == "tensorrt":
        useless.remove("with_plans")
    if useless:
        flags = (_FLAGS.get(word, f"--{word.replace('_', '-')}") for word in useless)
        raise UsageError(
            f"{', '.join(flags)}: only with --backend tensorrt that builds plans",
            fix="flamest-export --backend tensorrt --out DIR, or flamest-export plans DIR afterwards",
        )
