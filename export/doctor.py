"""Checks of this machine: the bundles that it can build, with a fix for everything that is missing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import FlamestError
from ..base.extras import EXPORT_MODULES

FULL_MEMORY_GIB = 8  # that an export of the published models needs at its peak
FULL_DISK_GIB = 3  # of the bundle while it is written
TENSORRT = "tensorrt backend"


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    fix: str = ""  # command or advice; empty when ok


def check_machine(folder: Path) -> tuple[Check, ...]:
    """Packages (imported, in a process of their own), memory, and free disk where ``folder`` is."""
    return (*_packages(), _memory(), _disk(folder), _tensorrt())


def can_build_tensorrt(checks: tuple[Check, ...]) -> bool:
    return can_build_onnx(checks) and all(check.ok for check in checks if check.name == TENSORRT)


def can_build_onnx(checks: tuple[Check, ...]) -> bool:
    packages = {name.partition(".")[0] for name in EXPORT_MODULES}
    return all(check.ok for check in checks if check.name in packages)


def _packages() -> list[Check]:
    """Import each package: an installed one may still fail, as torchvision next to another build of torch does."""
    code = (
        "import importlib, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "        print(name, 'ok', sep='\\t')\n"
        "    except Exception as error:\n"
        "        print(name, f'{type(error).__name__}: {error}'.splitlines()[0], sep='\\t')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, *EXPORT_MODULES], capture_output=True, text=True, check=False)
    results = dict(line.split("\t", 1) for line in ran.stdout.splitlines() if "\t" in line)
    checks = []
    for module in EXPORT_MODULES:
        package, result = module.partition(".")[0], results.get(module, "the import ended the process")
        if result == "ok":
            checks.append(Check(package, True, importlib.metadata.version(package)))
        else:
            checks.append(Check(package, False, result, "pip install 'flamest[export]'"))
    return checks


def _memory() -> Check:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gib = pages / 2**30
    enough = gib >= FULL_MEMORY_GIB
    fix = (
        "" if enough else f"export the published models on a machine with {FULL_MEMORY_GIB} GiB; random:tiny fits here"
    )
    return Check("memory", enough, f"{gib:.1f} GiB, {FULL_MEMORY_GIB} needed for the published models", fix)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    enough = free >= FULL_DISK_GIB
    fix = "" if enough else "free some space, or give --out on another disk"
    return Check("disk", enough, f"{free:.1f} GiB free, {FULL_DISK_GIB} needed for the published models", fix)


def _tensorrt() -> Check:
    """Check that engines can be built here: all that is missing at once, else an engine of one layer is built."""
    from ..runtime.backends.machine import gather_facts
    from ..runtime.backends.tensorrt.first_engine import try_first_engine
    from ..runtime.backends.tensorrt.supply import build_problems

    facts = gather_facts()
    if problems := build_problems(facts):
        found = "; ".join(str(problem) for problem in problems)
        fixes = "; ".join(dict.fromkeys(problem.fix for problem in problems))
        return Check(TENSORRT, False, found, f"{fixes}. Without it: flamest-export --backend onnx --out DIR")
    gpu = "" if facts.gpu is None else f" for {facts.gpu.name} ({facts.gpu.compute_capability})"
    try:
        first = try_first_engine(device=facts.device)
    except FlamestError as error:
        return Check(TENSORRT, False, error.message, error.fix)
    graphs = "with CUDA graphs" if first.cuda_graphs else f"without CUDA graphs ({'; '.join(first.remarks)})"
    found = f"tensorrt {facts.versions['tensorrt']}{gpu}, CUDA {facts.cuda}; an engine of one layer ran, {graphs}"
    return Check(TENSORRT, True, found)
