"""The options of TensorRT engines, which ``--backend tensorrt`` and ``flamest-export engines`` share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import UsageError
from ..runtime.bundle.graph_records import EngineOptions, HardwareCompat

if TYPE_CHECKING:
    from .engines import RequestedEngines

ENGINES = "TensorRT engines"  # the heading in --help

OptLevelOption = Annotated[
    int | None,
    typer.Option(
        "--opt-level",
        min=0,
        max=5,
        rich_help_panel=ENGINES,
        help="How long the builder searches for fast kernels: 0 is shortest, 5 longest. 3 when not given.",
    ),
]
HardwareCompatOption = Annotated[
    str | None,
    typer.Option(
        "--hardware-compat",
        metavar="WHICH",
        rich_help_panel=ENGINES,
        help="Other GPUs that the engines run on too: none (this model only), ampere+ (Ampere and newer), same-cc "
        "(all of this compute capability; TensorRT 10.9 or newer). none when not given.",
    ),
]
VersionCompatibleOption = Annotated[
    bool | None,
    typer.Option(
        "--version-compatible",
        rich_help_panel=ENGINES,
        help="Engines that newer versions of TensorRT run too: of the same major version, and 11 where 10 built them. "
        "They may be slower.",
    ),
]
StripWeightsOption = Annotated[
    bool | None,
    typer.Option(
        "--strip-weights",
        rich_help_panel=ENGINES,
        help="Small engines without weights: each node fills them in from the ONNX graph.",
    ),
]
Tf32Option = Annotated[
    bool | None,
    typer.Option(
        "--tf32/--no-tf32",
        rich_help_panel=ENGINES,
        help="Let float32 matmuls round their inputs to 10 bits (faster on Ampere and newer). "
        "When not given as the bundle was exported: only without --precision.",
    ),
]
WorkspaceOption = Annotated[
    int | None,
    typer.Option(
        "--workspace-mb",
        min=1,
        metavar="MIB",
        rich_help_panel=ENGINES,
        help="Memory in MiB that a kernel may use in addition to its tensors. All of the GPU's when not given.",
    ),
]
DetailedOption = Annotated[
    bool | None,
    typer.Option(
        "--detailed",
        rich_help_panel=ENGINES,
        help="Engines that describe every layer and its kernel, for flamest-export profile. Equally fast, a little "
        "larger.",
    ),
]
MaxBatchOption = Annotated[
    int | None,
    typer.Option(
        "--max-batch",
        min=1,
        metavar="CLIPS",
        rich_help_panel=ENGINES,
        help="Clips of the largest batch that the engines take. By the GPU's memory when not given, at most 128.",
    ),
]
TimingCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache",
        metavar="FILE",
        rich_help_panel=ENGINES,
        help="Kernel timings of earlier builds, read and written: builds after the first are quicker. One per TensorRT "
        "and GPU in the engine cache when not given.",
    ),
]
EngineCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--plan-cache",
        metavar="DIR",
        rich_help_panel=ENGINES,
        help="Folder of this machine's own engines, for signed bundles. ~/.cache/flamest/plans when not given.",
    ),
]
WithEnginesOption = Annotated[
    bool | None,
    typer.Option(
        "--plans/--no-plans",
        rich_help_panel=ENGINES,
        help="Build engines now, with --backend tensorrt. --no-plans needs no GPU: flamest-export engines builds them "
        "on the machine that has one.",
    ),
]
HARDWARE: tuple[HardwareCompat, ...] = ("none", "ampere+", "same-cc")


@dataclass(frozen=True)
class EngineFlags:
    """The options that decide an engine; None where one is not given."""

    opt_level: OptLevelOption = None
    hardware_compat: HardwareCompatOption = None
    version_compatible: VersionCompatibleOption = None
    strip_weights: StripWeightsOption = None
    tf32: Tf32Option = None
    workspace_mb: WorkspaceOption = None
    detailed: DetailedOption = None
    max_batch: MaxBatchOption = None
    timing_cache: TimingCacheOption = None
    plan_cache: EngineCacheOption = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def options(self, *, tf32: bool = False) -> EngineOptions:
        """The manifest's record of them; ``tf32`` where it is not given. Raises UsageError for a value that is none."""
        compat = self.hardware_compat
        if compat is not None and compat not in HARDWARE:
            raise UsageError(
                f"--hardware-compat {compat}: expected one of {', '.join(HARDWARE)}",
                fix="flamest-export --backend tensorrt --hardware-compat ampere+ --out DIR",
            )
        given = {"tf32": tf32, **self.given()}
        return EngineOptions(**{name: given[name] for name in EngineOptions.__struct_fields__ if name in given})


ENGINE_OPTIONS = (*(field.name for field in dataclasses.fields(EngineFlags)), "with_plans")


def requested_engines(backend: str | None, with_engines: bool | None, flags: EngineFlags) -> RequestedEngines | None:
    """The engines that an export should build, on the machine as it is; None without any.

    Raises UsageError for options of engines in an export that builds none.
    """
    if backend == "tensorrt" and with_engines is not False:
        from ..runtime.backends.machine import gather_facts
        from .engines import RequestedEngines

        return RequestedEngines(flags.options(), gather_facts(), flags.timing_cache, flags.plan_cache)
    useless = [f"--{name.replace('_', '-')}" for name in flags.given()]
    if with_engines is not None and backend != "tensorrt":
        useless.append("--plans/--no-plans")
    if useless:
        raise UsageError(
            f"{', '.join(useless)}: only with --backend tensorrt that builds engines",
            fix="flamest-export --backend tensorrt --out DIR, or flamest-export engines DIR afterwards",
        )
    return None
