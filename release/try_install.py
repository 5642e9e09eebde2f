"""``python release/try_install.py --dist dist``: install the release in clean environments, on every Python at hand.

For each Python: the base from the sdist, the coordinator and the agent from the wheel with its hashed requirements. In
each environment pip finds no conflict, every command starts, and packages of other roles are absent. With ``--demo``
the whole demo runs from the agent's environment. Then wheelhouses of both roles are made and installed without a
network; and for each supported Python and role it is seen whether every requirement has a wheel, which needs no such
Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from requirements import ROLES, ROOT, requirements_of

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
# Modules that a role's environment must not have (README: "Install by role").
ABSENT = {
    "base": ("torch", "onnxruntime", "av", "grpc", "apsw", "sklearn"),
    "coordinator": ("torch", "transformers", "onnxruntime", "av", "sklearn", "scipy"),
    "agent": ("torch", "transformers", "torchvision", "tensorrt"),
}
COMMANDS = ("flamest-export", "flamest-agent", "flamest-coordinator", "flamest-demo", "flamest-experiment")
PROBE = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder with wheel, sdist, requirements")
    parser.add_argument("--demo", action="store_true", help="run flamest-demo in the agent's environment too")
    parser.add_argument("--python", action="append", default=[], help="only this interpreter; may be repeated")
    options = parser.parse_args()
    failed = 0
    pythons = {python_version(Path(path)): Path(path) for path in options.python} or find_pythons()
    with tempfile.TemporaryDirectory(prefix="flamest-install-") as scratch:
        for version, python in pythons.items():
            for role in ABSENT:
                begun = time.monotonic()
                problem = try_role(python, role, options.dist.resolve(), Path(scratch) / f"{version}-{role}")
                if not problem and role == "agent" and options.demo:
                    problem = try_demo(Path(scratch) / f"{version}-{role}")
                shutil.rmtree(Path(scratch) / f"{version}-{role}", ignore_errors=True)
                failed += bool(problem)
                print(f"Python {version} {role}: {problem or 'ok'} ({time.monotonic() - begun:.0f} s)", flush=True)
        for role in ("coordinator", "agent"):
            problem = try_wheelhouse(role, options.dist.resolve(), Path(scratch) / f"offline-{role}")
            failed += bool(problem)
            print(f"wheelhouse of {role}, installed without a network: {problem or 'ok'}", flush=True)
    for version in SUPPORTED:
        for role in ROLES:
            problem = without_wheels(version, role)
            failed += bool(problem)
            print(f"Python {version} {role}: {problem or 'every requirement has a wheel'}", flush=True)
    sys.exit(1 if failed else 0)


def find_pythons() -> dict[str, Path]:
    """Return the supported interpreters of this machine by version: on the PATH, and pyenv's."""
    named = [shutil.which(f"python{version}") for version in SUPPORTED]
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin/python"))
    found = {python_version(path): path for path in (Path(sys.executable), *map(Path, filter(None, named)), *pyenv)}
    return {version: found[version] for version in SUPPORTED if version in found}


def python_version(python: Path) -> str:
    return run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()


def try_role(python: Path, role: str, dist: Path, venv: Path) -> str:
    """Install a role into a new environment and look at it; return what is wrong, or nothing."""
    run(python, "-m", "venv", venv)
    if role == "base":
        wanted: tuple[str | Path, ...] = (next(iter(dist.glob("flamest-*.tar.gz"))),)
    else:
        wanted = ("--require-hashes", "--find-links", dist, "-r", requirements_of(dist, role))
    bin_folder = venv / "bin"
    return next(filter(None, problems(bin_folder, role, wanted)), "")


def problems(bin_folder: Path, role: str, wanted: tuple[str | Path, ...]) -> Iterator[str]:
    yield failure("pip install", run(bin_folder / "pip", "install", "--quiet", *wanted))
    yield failure("pip check", run(bin_folder / "pip", "check"))
    for command in COMMANDS:
        yield failure(f"{command} --help", run(bin_folder / command, "--help"))
    present = run(bin_folder / "python", "-c", PROBE, *ABSENT[role]).stdout.split()
    yield f"has {', '.join(present)}" if present else ""


def try_demo(venv: Path) -> str:
    return failure("flamest-demo", run(venv / "bin" / "flamest-demo", "--out", venv / "demo"))


def try_wheelhouse(role: str, dist: Path, venv: Path) -> str:
    """Make a role's wheelhouse and install it where no network can be reached; return what is wrong, or nothing."""
    made = run(Path(sys.executable), ROOT / "release" / "wheelhouse.py", "--dist", dist, "--role", role)
    if made.returncode:
        return failure("wheelhouse.py", made)
    run(Path(sys.executable), "-m", "venv", venv)
    house = dist / f"wheelhouse-{role}"
    words = ("install", "--quiet", "--isolated", "--no-index", "--find-links", house, "--require-hashes")
    # A network namespace of its own has no network at all; where none may be made, --no-index must do.
    unshare = shutil.which("unshare")
    alone = unshare and run(Path(unshare), "-rn", "true").returncode == 0
    cut_off = (unshare, "-rn") if unshare and alone else ()
    program, *before = (*cut_off, venv / "bin" / "pip")
    done = run(Path(program), *before, *words, "-r", house / "requirements.txt")
    return failure("pip install", done) or failure("pip check", run(venv / "bin" / "pip", "check"))


def without_wheels(version: str, role: str) -> str:
    """Resolve a role for a Python without building anything; return what has no wheel, or nothing."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    words = ["pip", "compile", "--quiet", "--python-version", version, "--python-platform", "x86_64-manylinux_2_28"]
    # pytorchvideo and two of its requirements are published as source only: pure Python, built in seconds.
    source_only = [f"--no-binary={name}" for name in ("pytorchvideo", "fvcore", "iopath")]
    words += ["--only-binary=:all:", *source_only, "--extra", role, "--constraint", "constraints.txt", "pyproject.toml"]
    return failure("uv pip compile", run(uv, *words))


def run(program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program outside of the checkout, with nothing on PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    cwd = ROOT if program.name == "uv" or not program.is_absolute() else program.parent
    command = [str(program), *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment)


def failure(what: str, done: subprocess.CompletedProcess[str]) -> str:
    """Return the last lines of a failed program's errors, or nothing."""
    return "" if done.returncode == 0 else f"{what} ended with {done.returncode}: {done.stderr.strip()[-600:]}"


if __name__ == "__main__":
    main()
