"""Exit codes and error codes, from the classes of base/errors.py and from every place that raises with a code.

A code's meaning is its line in codes.toml where it has one, else the messages that are raised with it, or the docstring
of the class that has it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

from flamest.agent.egress.policy import Reason
from flamest.base import errors
from flamest.coordinator.rounds import Submission, Verdict, explain
from flamest.runtime.backends.unavailable import TABLE

from .words import cell, docstring, sentence, table

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("base", "export", "runtime", "fedproto", "agent", "coordinator", "experiments", "api")
BY_HAND: dict[str, dict[str, str]] = tomllib.loads((Path(__file__).parent / "codes.toml").read_text())
_TREE = re.compile(
    r"^[\s│├└─]*(\w+) +(\d+) +(.+)$", re.MULTILINE
)  # a line of the error tree: class, exit code, meaning
_SILENT = {"", "accepted", "duplicate"}  # not refusals


@dataclass
class ErrorCode:
    """One code: its exit codes, the messages that are raised with it, and where."""

    exits: set[int] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    modules: set[str] = field(default_factory=set)
    meaning: str = ""


def exit_codes() -> str:
    """Return the table of exit codes: of success, and of every class in the tree of base/errors.py."""
    rows = [("0", "", "", "Done; a daemon that was asked to end.", "")]
    for name, code, what in _TREE.findall(errors.__doc__ or ""):
        kind = getattr(errors, name)
        fix = BY_HAND["exits"].get(name, "")
        rows.append((code, f"`{name}`", f"`{kind.code}`", cell(sentence(what)), cell(sentence(fix))))
    return table(("exit code", "error", "its usual code", "meaning", "the way out"), rows)


def error_codes() -> str:
    """Return the tables of error codes, by the exit code of their errors, and that of the backends' codes."""
    backends = {code.value for code in TABLE}
    found = {code: one for code, one in collect_codes().items() if code not in backends}
    parts = []
    for exits in sorted({tuple(sorted(one.exits)) for one in found.values()}):
        name = " or ".join(map(str, exits))
        rows = [
            (f"`{code}`", cell(meaning(code, one)), ", ".join(f"`{module}`" for module in sorted(one.modules)[:3]))
            for code, one in sorted(found.items())
            if tuple(sorted(one.exits)) == exits
        ]
        parts += [f"## Exit code {name}", table(("code", "meaning", "raised in"), rows)]
    reasons = [(f"`{reason}`", cell(BY_HAND["reasons"].get(reason, ""))) for reason in get_args(Reason)]
    parts += ["## Reasons of `policy_refused`", table(("reason", "meaning"), reasons)]
    unavailable = [
        (f"`{code.value}`", str(entry.error.exit_code), cell(sentence(entry.meaning)), cell(entry.fix))
        for code, entry in TABLE.items()
    ]
    parts += ["## Backends that do not run a graph", BY_HAND["texts"]["backends"].strip()]
    parts.append(table(("code", "exit code", "meaning", "the way out"), unavailable))
    return "\n\n".join(parts)


def meaning(code: str, one: ErrorCode) -> str:
    """Return what a code means: written by hand, or the longest of its messages that say something."""
    if code in BY_HAND["meanings"]:
        return BY_HAND["meanings"][code]
    if one.meaning:
        return one.meaning
    spoken = [message for message in dict.fromkeys(one.messages) if _says_something(message)]
    return " / ".join(sentence(message) for message in spoken[:3])


def unexplained_codes() -> list[str]:
    """Return the codes that have no meaning: no line in codes.toml, no message, no docstring."""
    return sorted(code for code, one in collect_codes().items() if not meaning(code, one))


def superfluous_notes() -> list[str]:
    """Return the codes of codes.toml that no code raises."""
    return sorted(set(BY_HAND["meanings"]) - set(collect_codes()))


def error_classes() -> list[type[errors.FlamestError]]:
    """Return every class of error, those of the packages included."""
    found: list[type[errors.FlamestError]] = [errors.FlamestError]
    for kind in found:
        found += [inner for inner in kind.__subclasses__() if inner not in found]
    return found


@functools.cache
def collect_codes() -> dict[str, ErrorCode]:
    """Return every error code of the packages, from the syntax of their files."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    trees = {path: ast.parse(text) for path in paths if re.search(r"\bcode\b", text := path.read_text())}
    constants, makers = _constants(trees), _makers(trees)
    found: dict[str, ErrorCode] = defaultdict(ErrorCode)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                _add_call(found, node, path, constants, makers)
            elif isinstance(node, ast.ClassDef) and (kind := _error_class(node, path)):
                one = found[kind.code]
                one.exits.add(kind.exit_code)
                one.modules.add(_module(path))
                one.meaning = one.meaning or " ".join(docstring(kind).partition("\n\n")[0].split())
    for verdict in Verdict:
        if verdict.value not in _SILENT:
            one = found[verdict.value]
            one.exits.add(errors.DataError.exit_code)
            one.modules.add("coordinator/rounds.py")
            one.messages.append(_verdict(verdict))
    for code, entry in TABLE.items():
        found[code.value].exits.add(entry.error.exit_code)
        found[code.value].meaning = entry.meaning
    return {code: one for code, one in found.items() if code not in _SILENT}


def _add_call(
    found: dict[str, ErrorCode], node: ast.Call, path: Path, constants: dict[str, str], makers: dict[str, int]
) -> None:
    """Add the code of one call: ``DataError("…", code="…")``, or that of a function that returns such an error."""
    name = ast.unparse(node.func).rpartition(".")[2]
    if name not in makers:
        return
    for keyword in node.keywords:
        if keyword.arg == "code":
            for code in _values(keyword.value, constants):
                one = found[code]
                one.exits.add(makers[name])
                one.modules.add(_module(path))
                if node.args:
                    one.messages.append(_message(node.args[0]))


def _values(node: ast.expr, constants: dict[str, str]) -> list[str]:
    """Return the words that an expression may be."""
    if isinstance(node, ast.Constant):
        return [str(node.value)] if node.value else []
    if isinstance(node, ast.Name) and node.id in constants:
        return [constants[node.id]]
    if isinstance(node, ast.IfExp):
        return [*_values(node.body, constants), *_values(node.orelse, constants)]
    if isinstance(node, ast.BoolOp):
        return [word for value in node.values for word in _values(value, constants)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("storage_code"):
        return ["disk_full"]
    return []


def _makers(trees: dict[Path, ast.Module]) -> dict[str, int]:
    """Return the exit codes of the errors' classes, and of functions that return or raise one of them with a code."""
    for path in trees:
        importlib.import_module(
            ".".join(("flamest", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        )
    found = {kind.__name__: kind.exit_code for kind in error_classes()}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and "code" in {
                one.arg for one in (*node.args.args, *node.args.kwonlyargs)
            }:
                returned = ast.unparse(node.returns) if node.returns else ""
                if returned in found:
                    found.setdefault(node.name, found[returned])
                elif returned.startswith("Iterator"):  # a context manager that raises with the code
                    found.setdefault(node.name, errors.DataError.exit_code)
    return found


def _constants(trees: dict[Path, ast.Module]) -> dict[str, str]:
    """Return the module-level names of texts, such as ``DECODER_BROKEN = "decoder_broken"``."""
    return {
        node.targets[0].id: node.value.value
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def _error_class(node: ast.ClassDef, path: Path) -> Any:
    """Return the class when it is an error with a code of its own."""
    module = importlib.import_module(".".join(("flamest", *path.relative_to(ROOT).with_suffix("").parts)))
    kind = getattr(module, node.name, None)
    own = isinstance(kind, type) and issubclass(kind, errors.FlamestError) and "code" in kind.__dict__
    return kind if own else None


def _message(node: ast.expr) -> str:
    """Return a message with its placeholders as capitals: ``f"{path} is damaged"`` becomes "PATH is damaged"."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_message(value) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return _placeholder(node.value).upper()
    if isinstance(node, ast.BinOp):
        return _message(node.left) + _message(node.right)
    return "…"


def _placeholder(node: ast.expr) -> str:
    """Return the word that tells most about an expression: its last name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_")
    if isinstance(node, ast.Subscript):
        return _placeholder(node.value)
    if isinstance(node, ast.Call) and node.args:
        return _placeholder(node.args[0])
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "…"


def _verdict(verdict: Verdict) -> str:
    submission = cast("Submission", SimpleNamespace(round="ROUND"))
    return explain(verdict, submission)


def _says_something(message: str) -> bool:
    return len(re.findall(r"\b[a-z]{2,}\b", message)) >= 3


def _module(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
