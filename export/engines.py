"""TensorRT engines of a bundle, built for this machine's GPU: asked for, checked, supplied graph by graph."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import FlamestError
from ..base.progress import progress_bar
from ..runtime.backends.tensorrt.cache import open_cache
from ..runtime.backends.tensorrt.first_engine import try_first_engine
from ..runtime.backends.tensorrt.progress import BUILD_STEPS
from ..runtime.backends.tensorrt.supply import (
    BuildTarget,
    EngineResult,
    build_problems,
    ensure_bundled_engine,
    ensure_cached_engine,
    is_signed,
)
from ..runtime.backends.unavailable import Code
from ..runtime.bundle.graph_records import EngineOptions
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.manifest_reading import read_manifest
from ..runtime.bundle.opening import Bundle, open_bundle

if TYPE_CHECKING:
    from ..runtime.backends.machine import MachineFacts
    from ..runtime.backends.unavailable import BackendUnavailable


@dataclass(frozen=True)
class RequestedEngines:
    """Engines that are asked for, and this machine as the place to build them; examined before any long work."""

    options: EngineOptions
    facts: MachineFacts
    timing_cache: Path | None = None  # None: the one of this TensorRT and GPU in the engine cache
    engine_cache: Path | None = None  # None: the default folder

    @property
    def problems(self) -> tuple[BackendUnavailable, ...]:
        """All that is missing to build engines here, the driver first."""
        return build_problems(self.facts)

    @property
    def capability(self) -> str:
        """Compute capability of the GPU, "7.5"; empty without one."""
        return "" if self.facts.gpu is None else self.facts.gpu.compute_capability

    def target(self, *, fix: str, again: bool = False) -> BuildTarget:
        """This machine as the target of the builds; ``again``: build engines that are there already, too.

        Raises one error that names all that is missing, with ``fix``; where nothing is missing an engine of one layer
        is built and run first, and its error is raised.
        """
        if problems := self.problems:
            found = "\n".join(f"  {problem}" for problem in problems)
            error = problems[0].error()
            raise type(error)(
                f"TensorRT engines cannot be built on this machine:\n{found}", fix=fix, code=problems[0].code.value
            )
        target = BuildTarget(self.facts, self.options, open_cache(self.engine_cache), self.timing_cache, again=again)
        try_first_engine(device=self.facts.device)
        return target


def engines_command(bundle: Path, options: EngineOptions) -> str:
    """The command that builds the engines of ``bundle``, as it is typed."""
    return shlex.join(["flamest-export", "engines", str(bundle), *options.flags()])


@dataclass(frozen=True)
class SuppliedEngines:
    """The engines of a bundle that are there, and the errors of the others, by graph."""

    done: tuple[EngineResult, ...]
    failed: Mapping[str, FlamestError]

    def error(self) -> FlamestError | None:
        """The first error, with the messages of all; None without any."""
        if not self.failed:
            return None
        first, *others = self.failed.values()
        if not others:
            return first
        listed = "\n".join(f"  {error.message}" for error in (first, *others))
        message = f"engines of {len(self.failed)} graphs failed ({', '.join(self.failed)}):\n{listed}"
        return type(first)(message, fix=first.fix, code=first.code)


def supply_engines(bundle: Bundle, target: BuildTarget) -> SuppliedEngines:
    """An engine of every graph that the extractor runs, with a progress bar: into the bundle folder, or into the
    engine cache of this machine where the bundle is signed.

    A graph that TensorRT fails on, or whose engine is wrong, does not keep the others from theirs. Raises StorageError.
    """
    names = bundle.manifest.needed_graphs
    signed = is_signed(bundle.path)
    done: list[EngineResult] = []
    failed: dict[str, FlamestError] = {}
    with progress_bar("building engines", BUILD_STEPS * len(names), unit="steps") as progress:
        for name in names:
            progress.describe(f"graph {name}")
            try:
                if signed:
                    done.append(ensure_cached_engine(bundle, name, target, progress))
                else:
                    bundle, supplied = ensure_bundled_engine(bundle, name, target, progress)
                    done.append(supplied)
            except FlamestError as error:
                if error.code not in Code.__members__:
                    raise
                failed[name] = error
    return SuppliedEngines(tuple(done), failed)


def add_engines(out: Path, target: BuildTarget) -> tuple[Manifest, tuple[EngineResult, ...]]:
    """Engines for the bundle that was just exported; the manifest with them.

    An error leaves the ONNX bundle, with the engines that were built, and names the command to continue with.
    """
    try:
        supplied = supply_engines(open_bundle(out), target)
        if error := supplied.error():
            raise error
    except FlamestError as error:
        again = engines_command(out, target.options)
        raise type(error)(
            f"{error.message}\nThe ONNX bundle {out} is complete and can be used; engines are missing",
            fix=f"{error.fix}\n       then: {again}" if error.fix else again,
            code=error.code,
        ) from error
    return read_manifest(out), supplied.done
