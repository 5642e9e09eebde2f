"""Distributions that each extra installs, from the installed packages' own requirements."""

from __future__ import annotations

import re
from importlib import metadata

import pytest

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
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform: not installed here
        for requirement in requirements:
            wanted, extra_of = parse(requirement)
            if extra_of is None or extra_of in extras:
                entry = (wanted[0], frozenset(wanted[1]))
                if entry not in seen:
                    seen.add(entry)
                    pending.append(entry)
    return found - {"flamest"}


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
