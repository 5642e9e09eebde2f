"""Distributions that each extra installs: from pyproject.toml, and the installed packages' own requirements."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

FORBIDDEN = {
    "": {"torch", "transformers", "onnxruntime", "onnx", "av", "grpcio", "scikit-learn", "apsw", "cryptography"},
    "coordinator": {"torch", "torchvision", "transformers", "onnxruntime", "onnx", "av", "scikit-learn", "scipy"},
    "agent": {"torch", "torchvision", "transformers", "pytorchvideo", "tensorrt"},
}


def installed_by(extra: str) -> set[str]:
    """Return the names of all distributions that ``pip install flamest[extra]`` would install."""
    found: set[str] = set()
    pending = [("flamest", frozenset({extra} if extra else ()))]
    seen = set(pending)
    while pending:
        name, extras = pending.pop()
        found.add(name)
        requirements = requirements_of(name)
        for requirement in requirements:
            wanted, extra_of = parse(requirement)
            if extra_of is None or extra_of in extras:
                entry = (wanted[0], frozenset(wanted[1]))
                if entry not in seen:
                    seen.add(entry)
                    pending.append(entry)
    return found - {"flamest"}


def requirements_of(name: str) -> list[str]:
    """Return the Requires-Dist lines of a distribution; none where it is not installed (another platform's)."""
    if name == "flamest":
        of_extras = [f"{line}; extra == '{extra}'" for extra, lines in EXTRAS.items() for line in lines]
        return [*PROJECT["dependencies"], *of_extras]
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def parse(requirement: str) -> tuple[tuple[str, tuple[str, ...]], str | None]:
    """Split a Requires-Dist line into (name, its extras) and the extra that it belongs to."""
    match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", requirement)
    assert match is not None
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    extras = tuple(part.strip() for part in (match[2] or "").split(",") if part.strip())
    asked = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
    return (name, extras), asked[1] if asked else None


@pytest.mark.parametrize("extra", sorted(FORBIDDEN), ids=lambda extra: extra or "base")
def test_an_install_has_only_what_its_role_needs(extra):
    assert installed_by(extra) & FORBIDDEN[extra] == set()


def test_the_requirements_of_each_extra_are_found():
    assert {"grpcio", "apsw", "cryptography", "numpy"} <= installed_by("coordinator")
    assert {"onnxruntime", "av", "scikit-learn", "scipy"} <= installed_by("agent")
    assert {"torch", "transformers"} <= installed_by("export")


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_an_extra_brings_at_most_one_package_of_onnx_runtime(extra):
    assert len(installed_by(extra) & {"onnxruntime", "onnxruntime-gpu"}) <= 1


@pytest.mark.parametrize("role", ["agent", "export", "experiments", "dev"])
def test_a_role_and_its_core_differ_by_onnx_runtime_alone(role):
    assert installed_by(role) - installed_by(f"{role}-core") <= installed_by("agent") - installed_by("agent-core")
    assert "onnxruntime" in installed_by(role)
    assert "onnxruntime" not in installed_by(f"{role}-core")


GPU_ROLES = "agent-gpu agent-gpu-cu12 agent-gpu-cu13 gpu export-gpu export-gpu-cu12 dev-gpu dev-gpu-cu12"


@pytest.mark.parametrize("role", GPU_ROLES.split())
def test_a_role_for_a_gpu_brings_the_gpu_package(role):
    assert {"onnxruntime-gpu", "cuda-bindings"} <= installed_by(role)
    assert installed_by("agent-core") <= installed_by(role)


@pytest.mark.parametrize("role", ["export-gpu-cu12", "dev-gpu-cu12"])
def test_a_role_for_cuda_12_has_a_pytorch_of_cuda_12(role):
    """torch 2.10 asks for cuda-bindings 12.9, torch 2.11 for 13: only the former goes with TensorRT for CUDA 12."""
    from packaging.requirements import Requirement

    needs, pending, seen = [], [role], set()
    while pending:
        extra = pending.pop()
        seen.add(extra)
        for need in map(Requirement, EXTRAS[extra]):
            if need.name == "flamest":
                pending += need.extras - seen
            else:
                needs.append(need)
    torch = [need.specifier for need in needs if need.name == "torch"]
    bindings = [need.specifier for need in needs if need.name == "cuda-bindings"]
    assert all(each.contains("2.10.0") for each in torch)
    assert not all(each.contains("2.11.0") for each in torch)
    assert bindings
    assert all(each.contains("12.9.4") and not each.contains("13.0.3") for each in bindings)


def test_lower_bounds_lie_inside_those_of_flower():
    """A bound of flwr 1.42 for a package that we name too; constraints-flower.txt has versions for both."""
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in lines_of("constraints-flower.txt"))
    for line in (*PROJECT["dependencies"], *EXTRAS["wire"], *EXTRAS["coordinator"], *EXTRAS["agent"]):
        need = Requirement(line)
        if need.name != "flamest":
            assert need.specifier.contains(pins[need.name]), line
    assert pins["flwr"] == "1.42.0"
    assert [pins[name].split(".")[0] for name in ("protobuf", "typer", "rich")] == ["6", "0", "14"]


def lines_of(name: str) -> list[str]:
    text = (Path(__file__).parents[1] / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]
