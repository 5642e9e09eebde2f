"""TensorRT on the command line: what ``--backend tensorrt`` does after the export, and the command ``plans``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command
from ...base.errors import FlamestError
from ...base.options import JsonOption, TrustedKeyOption
from ...runtime.bundle.records import EngineOptions
from .engine_options import (
    PLAN_OPTIONS,
    HardwareCompatOption,
    OptLevelOption,
    PlanCacheOption,
    StripWeightsOption,
    Tf32Option,
    TimingCacheOption,
    VersionCompatibleOption,
    WorkspaceOption,
    read_plan_options,
    refuse_plan_options,
)
from .options import BundleArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...base.progress import Progress
    from ...runtime.backends.tensorrt.supply import BuildTarget, EngineResult
    from ...runtime.bundle.manifest import Manifest
    from ...runtime.bundle.opening import Bundle


def site_for_export(context: typer.Context, backend: str | None, out: Path) -> BuildTarget | None:
    """For ``--backend tensorrt`` this machine, asked before any work; else None, and plans' options are refused."""
    given = context.params
    if backend == "tensorrt" and given["with_plans"] is not False:
        options = read_plan_options(given)
        otherwise = onnx_now_plans_later(_other_options(context), out, options)
        return make_site(options, given["timing_cache"], given["plan_cache"], otherwise)
    refuse_plan_options(given, backend)
    return None


@dataclass(frozen=True)
class PlansOutlook:
    """What a dry run says of plans; ``problems`` is empty where they would be built."""

    wanted: bool  # --backend tensorrt without --no-plans
    problems: tuple[str, ...] = ()
    capability: str = ""  # of the GPU here, "7.5"; empty without one, or where plans are not wanted
    stripped: bool = False

    @property
    def line(self) -> str:
        if not self.wanted:
            return "plans: none"
        if self.problems:
            return f"plans: cannot be built on this machine: {'; '.join(self.problems)}"
        size = "without weights" if self.stripped else "about the graph's size"
        return f"plans: one per graph, {size}, built on this machine"


def plans_outlook(context: typer.Context, backend: str | None) -> PlansOutlook:
    """The options of plans read as for an export, and this machine asked; raises UsageError as an export does."""
    given = context.params
    if backend != "tensorrt" or given["with_plans"] is False:
        refuse_plan_options(given, backend)
        return PlansOutlook(wanted=False)
    from ...runtime.backends.machine import gather_facts
    from ...runtime.backends.tensorrt.supply import build_problems

    options, facts = read_plan_options(given), gather_facts()
    capability = "" if facts.gpu is None else facts.gpu.compute_capability
    return PlansOutlook(True, tuple(map(str, build_problems(facts))), capability, options.strip_weights)


def make_site(
    options: EngineOptions, timing_cache: Path | None, plan_cache: Path | None, otherwise: str, *, again: bool = False
) -> BuildTarget:
    """This machine as a place to build plans, asked before any long work.

    Raises one error that names all that is missing; ``otherwise``: what to type instead.
    """
    from ...runtime.backends.machine import gather_facts
    from ...runtime.backends.tensorrt.cache import open_cache
    from ...runtime.backends.tensorrt.supply import BuildTarget, build_problems

    facts = gather_facts()
    if problems := build_problems(facts):
        found = "\n".join(f"  {problem}" for problem in problems)
        error = problems[0].error()
        raise type(error)(
            f"TensorRT plans cannot be built on this machine:\n{found}", fix=otherwise, code=problems[0].code.value
        )
    return BuildTarget(facts, options, open_cache(plan_cache), timing_cache, again=again)


def onnx_now_plans_later(words: Sequence[str], out: Path, options: EngineOptions) -> str:
    """What to do on a machine that cannot build plans. ``words``: the other options of this export, as typed.

    In fp32 the graphs of both backends are the same; where precision is asked for, TensorRT wants its own form.
    """
    form = ["--backend", "tensorrt", "--no-plans"] if "--precision" in words else ["--backend", "onnx"]
    now = shlex.join(["flamest-export", *form, *words])
    later = shlex.join(["flamest-export", "plans", str(out), *options.flags()])
    return (
        f"here, now: {now}\n"
        f"       then copy the folder to the machine with the GPU that will run it, and type there: "
        f"pip install 'flamest[agent,tensorrt]' && {later}"
    )


def _other_options(context: typer.Context) -> list[str]:
    """The options that were typed, but for ``--backend`` and those of plans, to be typed again."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in ("backend", "as_json", *PLAN_OPTIONS):
            continue
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            value = context.params[name]
            values = value if isinstance(value, list | tuple) else [value]
            for each in values:
                words += _typed(parameter, each)
    return words


def _typed(parameter: Any, value: Any) -> list[str]:
    """One option as it is typed: ``--name value``, or the flag alone."""
    if isinstance(value, bool):
        return [parameter.opts[0] if value else parameter.secondary_opts[0]]
    return [str(parameter.opts[0]), str(value)]


AgainOption = Annotated[bool, typer.Option("--again", help="Build plans that are there already, too.")]


@command
def plans(
    bundle: BundleArgument,
    opt_level: OptLevelOption = None,
    hardware_compat: HardwareCompatOption = None,
    version_compatible: VersionCompatibleOption = None,
    strip_weights: StripWeightsOption = None,
    tf32: Tf32Option = None,
    workspace_mb: WorkspaceOption = None,
    timing_cache: TimingCacheOption = None,
    plan_cache: PlanCacheOption = None,
    again: AgainOption = False,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Build TensorRT plans of an ONNX bundle for this machine's GPU. Needs no PyTorch.

    Every file of the bundle is checked first. A plan goes into the bundle, beside its ONNX graph; those
    of a signed bundle, which must not change, go into this machine's plan cache, where the agent finds
    them. Plans that are there already, for this TensorRT, GPU and options, are not built again.
    """
    from ...runtime.backends.tensorrt.supply import is_signed, remove_unlisted_engines
    from ...runtime.bundle.opening import open_bundle, open_manifest
    from ...runtime.bundle.signature import read_trusted_keys

    given = {
        "opt_level": opt_level,
        "hardware_compat": hardware_compat,
        "version_compatible": version_compatible,
        "strip_weights": strip_weights,
        "tf32": tf32,
        "workspace_mb": workspace_mb,
    }
    options = read_plan_options(given)
    trusted = read_trusted_keys(trusted_key or (), where="--trusted-key")
    open_manifest(bundle, trusted)  # before a machine is asked about a folder that is no bundle
    typed = shlex.join(["flamest-export", "plans", str(bundle), *options.flags()])
    otherwise = f"mend what is named above, and type again: {typed}; without plans the bundle runs on ONNX Runtime"
    target = make_site(options, timing_cache, plan_cache, otherwise, again=again)
    if not is_signed(bundle):
        remove_unlisted_engines(bundle)
    done = supply(open_bundle(bundle, trusted), target)
    if not as_json:
        show_supplied(done)
    return {"bundle": str(bundle), "plans": supplied_rows(done)}


def supply(bundle: Bundle, target: BuildTarget) -> list[EngineResult]:
    """A plan of every graph that the extractor runs, into the bundle or the cache, with a progress bar."""
    from ...base.progress import progress_bar
    from ...runtime.backends.tensorrt.progress import STEPS

    names = bundle.manifest.needed_graphs
    with progress_bar("building plans", STEPS * len(names), unit="steps") as progress:
        return _supply_all(bundle, names, target, progress)


def _supply_all(bundle: Bundle, names: Sequence[str], target: BuildTarget, progress: Progress) -> list[EngineResult]:
    from ...runtime.backends.tensorrt.supply import ensure_bundled_engine, ensure_cached_engine, is_signed

    done: list[EngineResult] = []
    signed = is_signed(bundle.path)
    for name in names:
        progress.describe(f"graph {name}")
        if signed:
            done.append(ensure_cached_engine(bundle, name, target, progress))
        else:
            bundle, supplied = ensure_bundled_engine(bundle, name, target, progress)
            done.append(supplied)
    return done


def add_plans(out: Path, target: BuildTarget) -> tuple[Manifest, list[EngineResult]]:
    """Plans for the bundle that was just exported; the manifest as it is then.

    An error leaves the ONNX bundle, with the plans that were built, and says how to go on.
    """
    from ...runtime.bundle.manifest import read_manifest
    from ...runtime.bundle.opening import open_bundle

    try:
        done = supply(open_bundle(out), target)
    except FlamestError as error:
        again = shlex.join(["flamest-export", "plans", str(out), *target.options.flags()])
        raise type(error)(
            f"{error.message}\nThe ONNX bundle {out} is whole and can be used; plans are missing",
            fix=f"{error.fix}\n       then: {again}" if error.fix else again,
            code=error.code,
        ) from error
    return read_manifest(out), done


def show_supplied(done: Sequence[EngineResult]) -> None:
    for one in done:
        how = f"built in {one.record.build_seconds:.1f} s" if one.fresh else "was there already"
        print(f"  {one.graph:13} {one.path}, {one.bytes / 1e6:.1f} MB, {how}")
        for remark in one.remarks:
            print(f"                {remark}")
    if done:
        plan = done[0].record
        print(f"  TensorRT {plan.tensorrt} on {plan.gpu} ({plan.compute_capability}), driver {plan.driver}")


def supplied_rows(done: Sequence[EngineResult]) -> list[dict[str, Any]]:
    import msgspec

    return [
        {
            "graph": one.graph,
            "path": str(one.path),
            "bytes": one.bytes,
            "built_now": one.fresh,
            "remarks": list(one.remarks),
            **msgspec.to_builtins(one.record),
        }
        for one in done
    ]
