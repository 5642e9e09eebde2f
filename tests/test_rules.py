"""Rules about the packages: imports between them, imports that must stay light, the dependencies they may have."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("base", "export", "runtime", "fedproto", "agent", "coordinator", "experiments", "api")
MAY_IMPORT = {
    "base": set(),
    "runtime": {"base"},
    "fedproto": {"base"},
    "export": {"runtime", "base"},
    "agent": {"runtime", "fedproto", "base"},
    "coordinator": {"fedproto", "base"},
    "experiments": set(PACKAGES) - {"api"},
    "api": set(PACKAGES),
}
HEAVY = {
    "torch", "torchvision", "transformers", "pytorchvideo", "tensorrt", "onnx", "onnxruntime", "openvino",
    "av", "sklearn", "scipy", "PIL", "tokenizers", "grpc", "apsw", "cryptography", "cuda",
    "starlette", "uvicorn",
}  # fmt: skip
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MODULES = sorted(
    ".".join(("flamest", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)


def imported_names(path: Path) -> set[str]:
    """Return what a file imports from flamest, in functions and for types too, as dotted names below ``flamest``.

    ``from ..base.files import FileLock`` gives ``base.files`` and ``base.files.FileLock``.
    """
    parts = path.relative_to(ROOT).parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = (*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else ()))
            found.update(".".join((*target, *end)) for end in ((), *((alias.name,) for alias in node.names)))
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found.update(name.removeprefix("flamest.") for name in names if name.startswith("flamest."))
    return found


def imported_packages(path: Path) -> set[str]:
    """Return the packages that a file imports from, its own left out."""
    own = path.relative_to(ROOT).parts[0]
    return {name.split(".")[0] for name in imported_names(path)} & set(PACKAGES) - {own}


def import_circle() -> list[str]:
    """Return the modules of one import circle, or none when there is no circle."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        imported = imported_names(path) & set(files) - {module}
        # A submodule imports its package first; only packages that a file names by themselves count.
        graph[module] = {name for name in imported if not any(other.startswith(f"{name}.") for other in imported)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_from_the_packages_below_it(package):
    wrong = {
        str(path.relative_to(ROOT)): sorted(imported_packages(path) - MAY_IMPORT[package])
        for path in (ROOT / package).rglob("*.py")
        if imported_packages(path) - MAY_IMPORT[package]
    }
    assert wrong == {}


def test_the_package_rule_finds_a_wrong_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "agent" / "training").mkdir(parents=True)
    file = tmp_path / "agent" / "training" / "x.py"
    file.write_text(
        "from ...coordinator.rounds import Round\nfrom ... import export\nimport flamest.runtime.captioner\n"
    )
    assert imported_packages(file) == {"coordinator", "export", "runtime"}


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions and those for types count too."""
    assert import_circle() == []


def test_the_circle_rule_finds_a_circle(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "x.py").write_text("from ..base.z import a\nfrom .y import b\n")
    (tmp_path / "agent" / "y.py").write_text("def f():\n    from . import x\n")
    (tmp_path / "base" / "z.py").write_text("")
    assert set(import_circle()) == {"agent.x", "agent.y"}
    (tmp_path / "agent" / "y.py").write_text("from ..base import z\n")
    assert import_circle() == []


def test_the_package_list_is_the_folders():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {
        ".".join(("flamest", *path.parent.relative_to(ROOT).parts))
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == folders | {"flamest"}


def run_python(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, env={**os.environ}
    ).stdout


HELP = """
import importlib, sys
target, heavy, *words = sys.argv[1:]
module, function = target.split(":")
sys.argv = ["command", *words, "--help"]
try:
    getattr(importlib.import_module(module), function)()
except SystemExit as ended:
    assert ended.code == 0, ended.code
print("loaded:", *sorted(set(heavy.split(",")) & set(sys.modules)))
"""


def subcommands() -> list[tuple[str, tuple[str, ...]]]:
    """Return every command and subcommand, read from the command line itself."""
    import importlib

    import typer

    found: list[tuple[str, tuple[str, ...]]] = []
    for name, target in COMMANDS.items():
        app = importlib.import_module(target.split(":")[0]).app
        pending = [((), typer.main.get_command(app))]
        while pending:
            words, group = pending.pop()
            found.append((name, words))
            pending += [((*words, word), inner) for word, inner in getattr(group, "commands", {}).items()]
    return found


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_every_command_loads_no_heavy_module(command):
    for name, words in subcommands():
        if name == command:
            out = run_python(HELP, COMMANDS[name], ",".join(sorted(HEAVY)), *words)
            assert out.splitlines()[-1] == "loaded:", f"{name} {' '.join(words)} --help {out.splitlines()[-1]}"
            assert "Usage" in out


BARE = """
import importlib, importlib.abc, sys
allowed = set(sys.argv[1].split(","))

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed and name.split(".")[0] not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Absent())
for module in sys.argv[2:]:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(module, error)
"""
BASE_INSTALL = {
    "flamest", "msgspec", "typer", "rich", "click", "shellingham",
    "typing_extensions", "annotated_doc", "markdown_it", "mdurl", "pygments", "numpy",
}  # fmt: skip
GENERATED = {"_pb2", "_pb2_grpc"}  # protobuf code imports protobuf and grpc at its top


def test_every_module_imports_with_no_extra_installed():
    modules = [module for module in MODULES if not any(module.endswith(end) for end in GENERATED)]
    assert len(modules) > 30
    assert run_python(BARE, ",".join(sorted(BASE_INSTALL)), *modules) == ""


def test_no_module_prints_outside_the_command_line():
    printing = {"cli.py", "demo_cli.py", "console.py", "app.py", "progress.py"}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name not in printing and path.parent.name != "cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert wrong == []


def test_openvino_is_imported_in_one_place_that_turns_its_telemetry_off():
    """Use ``runtime.backends.openvino_cpu.import_openvino``: a plain import reports to Google Analytics."""
    importing = [
        str(path.relative_to(ROOT))
        for package in (*PACKAGES, "bench", "tests")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "openvino" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "openvino")
    ]
    assert importing == ["runtime/backends/openvino_cpu.py"]


def test_every_direct_dependency_is_pinned_within_its_bounds_for_development():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # For hardware that no development machine has to have.
    not_installed = {"agent-gpu-cu12", "agent-gpu-cu13", "export-gpu-cu12", "tensorrt-cu12", "tensorrt-cu13"}
    words = [*project["dependencies"], *(word for name in set(extras) - not_installed for word in extras[name])]
    wanted = [Requirement(word) for word in words if not word.startswith("flamest[")]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    wrong = [str(need) for need in wanted if need.name not in pins or not need.specifier.contains(pins[need.name])]
    assert wrong == []
