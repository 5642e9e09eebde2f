"""Every error that the package raises has its way out: a fix that a person can follow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("base", "export", "runtime", "fedproto", "agent", "coordinator", "experiments", "api")
# Classes whose calls need no ``fix``, and why.
OWN_FIX = {
    "MissingExtra": "makes it: the command that installs the extra",
    "InvariantError": "makes it: a bug, to be reported",
    "PolicyRefused": "nothing failed: its message is for the silo's log and ledger, and says what the policy can be",
    "ClientStopped": "ends the agent's work as it was asked to; no person sees it",
    "WorkStopped": "ends the agent's work as it was asked to; no person sees it",
    "WorkExpired": "becomes another error, which has one",
    "StaleUpdate": "the agent goes on with the next round by itself",
    "RunChanged": "the agent joins again by itself",
}
# Places whose errors go to another program, or to a log with their code, not to a person with a terminal.
ANSWERED = {
    "coordinator/serving/": "the answer to a silo's call; the agent shows it with a fix of its own (client_errors.py)",
    "coordinator/storage/spool.py": "the answer to a silo's update",
    "coordinator/strategies/norm_bound.py": "the answer to a silo's update",
    "fedproto/codecs.py": "the answer to a message; the agent's and the coordinator's logs have its code",
    "fedproto/messages/": "the answer to a message; the agent's and the coordinator's logs have its code",
    "fedproto/tensors.py": "the answer to a message; the agent's and the coordinator's logs have its code",
}


def error_classes(trees: dict[str, ast.Module]) -> set[str]:
    """Return the names of FlamestError and all classes below it, wherever they are."""
    known = {"FlamestError"}
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    while True:
        found = {name for name, above in bases.items() if above & known} - known
        if not found:
            return known
        known |= found


def trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def without_fix(file: str, tree: ast.Module, kinds: set[str]) -> Iterator[str]:
    """Yield the place of every call of an error class of ``kinds`` without ``fix``."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in kinds and not any(keyword.arg in ("fix", None) for keyword in node.keywords):
            yield f"{file}:{node.lineno} {name}"


def test_every_error_that_a_person_sees_has_a_fix():
    parsed = trees()
    kinds = error_classes(parsed) - set(OWN_FIX)
    seen = {file: tree for file, tree in parsed.items() if not file.startswith(tuple(ANSWERED))}
    assert [place for file, tree in seen.items() for place in without_fix(file, tree, kinds)] == []


def test_every_exemption_is_used():
    parsed = trees()
    known = error_classes(parsed)
    assert set(OWN_FIX) <= known
    for start in ANSWERED:
        assert any(any(without_fix(file, tree, known)) for file, tree in parsed.items() if file.startswith(start)), (
            start
        )


def test_the_rule_finds_an_error_without_fix():
    tree = ast.parse("class Mine(DataError): pass\nraise Mine('x')\nraise Mine('x', fix='y')\nraise ValueError('x')")
    kinds = error_classes({"a.py": ast.parse("class DataError(FlamestError): pass"), "b.py": tree})
    assert kinds == {"FlamestError", "DataError", "Mine"}
    assert list(without_fix("b.py", tree, kinds)) == ["b.py:2 Mine"]
