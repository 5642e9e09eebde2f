"""The steps of gpu-check, in order: what is asked of the machine, and how long each step may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...base.errors import UsageError
from .step import PROBE, StepPlan

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
REFERENCE, TENSORRT, CUDA = "onnxruntime", "tensorrt", "onnxruntime-cuda"
BACKENDS = (REFERENCE, TENSORRT, CUDA)  # the others are compared with the first
DRY_BATCH = 4  # of engines that a CPU computes in place of a GPU: large batches take it minutes
MINIWORLD = "miniworld"  # networks that mean something: their captions are compared
DEFAULT = "default"  # what an export makes when no precision is named; the bundle whose speed is swept


@dataclass(frozen=True)
class GpuCheckRequest:
    """``dry``: against stand-ins, to test the steps themselves. ``work``: folder that an interrupted run resumes in."""

    results: Path  # folder of the report
    weights: str = "random:full"
    precisions: tuple[str, ...] = PRECISIONS
    repeats: int = 30
    clips: int = 16
    batches: tuple[int, ...] = BATCHES
    dry: bool = False
    work: Path | None = None
    bundles: Mapping[str, Path] = field(default_factory=dict)  # by precision: ready ones, which are not exported
    only: tuple[str, ...] = ()  # names of steps: these alone run, and those that they need; none: all
    left_out: Mapping[str, str] = field(default_factory=dict)  # by backend: the reason why it is not asked for

    @property
    def exported(self) -> tuple[str, ...]:
        """The bundles that are exported, by what is asked of their precision."""
        return (DEFAULT, *self.precisions)


def plan_steps(request: GpuCheckRequest) -> tuple[StepPlan, ...]:
    """Every step that is asked for, in the order in which they run.

    Raises UsageError for a name in ``only`` that no step has.
    """
    steps = {plan.name: plan for plan in _steps(request)}
    if unknown := [name for name in request.only if name not in steps]:
        raise UsageError(
            f"--step {unknown[0]!r}: gpu-check has no step of that name, expected one of: {', '.join(steps)}",
            fix=f"flamest-export gpu-check --step {next(iter(steps))!r}",
        )
    wanted, open_names = set[str](), list(request.only or steps)
    while open_names:
        name = open_names.pop()
        if name not in wanted:
            wanted.add(name)
            open_names += steps[name].needs
    return tuple(plan for name, plan in steps.items() if name in wanted)


def _steps(request: GpuCheckRequest) -> Iterator[StepPlan]:
    yield StepPlan("doctor", ("doctor",), 300, 10)
    yield StepPlan("one layer", ("one-layer",), 900, 30, PROBE)
    # Before hours are spent on bundles whose attention may be slow.
    casts = ("attention-casts", "--weights", request.weights, *_few_runs(request))
    yield StepPlan("attention casts", casts, 3600, 300, PROBE, ("one layer",))
    for precision in request.exported:
        yield _build_step(request, precision)
    yield StepPlan(f"{MINIWORLD}: build", ("copy", MINIWORLD, MINIWORLD), 300, 5, PROBE, makes=MINIWORLD)
    for precision in (*request.exported, MINIWORLD):
        yield from _bundle_steps(request, precision)
    yield from _speed_steps(request)
    yield from _probe_steps(request)


def _build_step(request: GpuCheckRequest, precision: str) -> StepPlan:
    name, out = f"{precision}: build", bundle_folder(precision)
    if precision in request.bundles:
        folder = request.bundles[precision]
        # Steps run in another folder. A name without a folder may be that of a bundle that comes with the package.
        ready = str(folder.resolve()) if folder.is_dir() else str(folder)
        return StepPlan(name, ("copy", ready, out), 600, 10, PROBE, makes=out, private=frozenset({ready}))
    words = () if precision == DEFAULT else ("--precision", precision)
    typed = ("--backend", "tensorrt", "--no-plans", "--weights", request.weights, *words, "--out", out)
    return StepPlan(name, typed, 3600, 300, makes=out)


def bundle_folder(precision: str) -> str:
    """Folder of a bundle below the work folder."""
    return MINIWORLD if precision == MINIWORLD else f"bundle-{precision}"


def _bundle_steps(request: GpuCheckRequest, precision: str) -> Iterator[StepPlan]:
    """When the engines fail, the other backends are measured all the same.

    The default bundle's engines describe their layers, so that ``profile`` has none to build.
    """
    bundle, built = bundle_folder(precision), (f"{precision}: build",)
    sizes = ("--repeats", str(request.repeats), "--clips", str(request.clips), "--vectors")
    backends = [word for name in BACKENDS if name not in request.left_out for word in ("--backend", name)]
    words = _small_engines(request)
    words += ("--detailed",) if precision == DEFAULT else ()
    yield StepPlan(f"{precision}: engines", ("engines", bundle, *words), 5400, 900, needs=built, continues=True)
    yield StepPlan(f"{precision}: inspect", ("inspect", bundle), 300, 2, needs=built)
    yield StepPlan(f"{precision}: check", ("check", bundle), 900, 30, needs=built)
    yield StepPlan(f"{precision}: verify", ("verify", bundle), 1800, 120, needs=built)
    yield StepPlan(f"{precision}: bench", ("bench", bundle, *sizes, *backends), 3600, 240, needs=built)


def _speed_steps(request: GpuCheckRequest) -> Iterator[StepPlan]:
    """Clips a second at every batch: graph by graph, from prepared frames, and PyTorch's on the same GPU."""
    bundle, built = bundle_folder(DEFAULT), (f"{DEFAULT}: build",)
    engines = (*built, f"{DEFAULT}: engines")
    batches = [word for batch in request.batches for word in ("--batch", str(batch))]
    repeats = ("--repeats", str(request.repeats))
    backends = [(TENSORRT, engines), (CUDA, built)]
    without_cuda = request.dry or CUDA in request.left_out  # there are no stand-ins of ONNX Runtime CUDA
    if without_cuda:
        backends.pop()
    for backend, needs in backends:
        sweep = ("bench", bundle, *repeats, "--clips", str(request.clips), "--backend", backend, *batches)
        yield StepPlan(f"sweep: {backend}", sweep, 3600, 300, needs=needs)
        prepared = ("prepared", bundle, "--backend", backend, *batches)
        yield StepPlan(f"prepared: {backend}", prepared, 3600, 300, PROBE, needs)
    profiled = ("profile", bundle, "--backend", TENSORRT, "--detailed", "--out", "profile-tensorrt")
    yield StepPlan("profile: tensorrt", profiled, 1800, 120, needs=engines)
    if not without_cuda:
        yield StepPlan("profile: onnxruntime-cuda", ("profile", bundle, "--backend", CUDA), 1800, 120, needs=built)
    yield StepPlan("torch", ("torch", "--weights", request.weights, *batches), 3600, 600, PROBE)


def _probe_steps(request: GpuCheckRequest) -> Iterator[StepPlan]:
    """Facts that are tested with engines of their own."""
    bundle, needs = bundle_folder(DEFAULT), (f"{DEFAULT}: build",)
    runs = _few_runs(request)
    rows = ("--rows", str(DRY_BATCH)) if request.dry else ()
    sizes = (*rows, *runs, *_small_engines(request))
    yield StepPlan("profiles", ("profiles", bundle, *sizes), 5400, 600, PROBE, needs)
    yield StepPlan("cuda graphs", ("cuda-graphs", bundle, *sizes), 1800, 60, PROBE, needs)
    if "fp32" in request.precisions:
        yield StepPlan("tf32", ("tf32", bundle_folder("fp32"), *sizes), 5400, 600, PROBE, ("fp32: build",))
    forms = ("convolutions", "--weights", request.weights, *runs)
    yield StepPlan("convolutions", forms, 3600, 600, PROBE, ("one layer",))
    yield StepPlan("fp16 overflow", ("overflow", "--weights", request.weights), 1800, 120, PROBE)


def _small_engines(request: GpuCheckRequest) -> tuple[str, ...]:
    return ("--max-batch", str(DRY_BATCH)) if request.dry else ()


def _few_runs(request: GpuCheckRequest) -> tuple[str, ...]:
    """Probes have numbers of runs of their own on a GPU machine."""
    return ("--repeats", str(request.repeats)) if request.dry else ()
