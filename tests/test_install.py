"""What each extra brings, from the installed packages' own requirements."""

from __future__ import annotations

import re
from importlib import metadata

import pytest

FORBIDDEN = {
    "": {"torch", "transformers", "onnxruntime", "onnx", "av", "grpcio", "scikit-learn", "apsw", "cryptography"},
    "coordinator": {"torch", "torchvision", "transformers", "onnxruntime", "onnx", "av", "scikit-learn", "scipy"},
    "agent": {"torch", "torchvision", "transformers", "pytorchvideo", "tensorrt"},
}


def brought_by(extra: str) -> set[str]:
    """All distributions that ``pip install flamest[extra]`` would bring, by name."""
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
            wanted, asked_for = parse(requirement)
            if asked_for is None or asked_for in extras:
                entry = (wanted[0], frozenset(wanted[1]))
                if entry not in seen:
                    seen.add(entry)
                    pending.append(entry)
    return found - {"flamest"}


def parse(requirement: str) -> tuple[tuple[str, tuple[str, ...]], str | None]:
    """(name, its extras) and the extra that asks for it, of one Requires-Dist line."""
    match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", requirement)
    assert match is not None
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    extras = tuple(part.strip() for part in (match[2] or "").split(",") if part.strip())
    asked = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
    return (name, extras), asked[1] if asked else None


@pytest.mark.parametrize("extra", sorted(FORBIDDEN), ids=lambda extra: extra or "base")
def test_an_install_stays_free_of_what_its_role_does_not_need(extra):
    assert brought_by(extra) & FORBIDDEN[extra] == set()


def test_the_walk_sees_what_an_extra_does_bring():
    assert {"grpcio", "apsw", "cryptography", "numpy"} <= brought_by("coordinator")
    assert {"onnxruntime", "av", "scikit-learn", "scipy"} <= brought_by("agent")
    assert {"torch", "transformers"} <= brought_by("export")
