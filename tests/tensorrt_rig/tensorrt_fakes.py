"""Fakes of TensorRT's objects that have only the names of the genuine classes.

Imported in a child process that finds the bindings of one of the rig's versions. A fake has
the attributes of the genuine class and no other (``unittest.mock.create_autospec``), and every call is
compared with the signatures that the compiled bindings state in their docstrings: number, names and
types of arguments. It cannot tell what TensorRT would compute.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import tensorrt_bindings as tensorrt

MODULE = tensorrt.Builder.__module__  # "tensorrt_bindings.tensorrt"
GENUINE = dict(vars(tensorrt))
_SEQUENCES = re.compile(r"(typing\.)?(collections\.abc\.)?(List|list|tuple|Tuple|Sequence|Iterable)\b")


@dataclass
class Fakes:
    """Makes fakes and keeps them; ``calls`` are all calls on them in order, as "Builder.create_network"."""

    _made: list[tuple[str, Any]] = field(default_factory=list)
    _all: Any = field(default_factory=mock.Mock)

    def make(self, name: str, **attributes: Any) -> Any:
        """Make a fake of ``tensorrt.NAME``; ``attributes`` set properties, or a method's ``"parse.return_value"``."""
        fake = mock.create_autospec(GENUINE[name], instance=True, spec_set=True)
        fake.configure_mock(**attributes)
        self._all.attach_mock(fake, f"{name}_{len(self._made)}")
        self._made.append((name, fake))
        return fake

    def constructor(self, name: str, fake: Any) -> Any:
        """To put in place of the class ``tensorrt.NAME``: checks the arguments, gives ``fake``."""

        def construct(*args: Any, **kwargs: Any) -> Any:
            check_call(getattr(genuine, "__init__"), args, kwargs, name)  # noqa: B009
            return fake

        genuine = GENUINE[name]
        return construct

    @property
    def calls(self) -> list[str]:
        return [re.sub(r"_\d+\.", ".", name) for name, _, _ in self._all.mock_calls if "." in name]

    def check(self) -> None:
        """Raises AssertionError when a call was made that the genuine bindings would not take."""
        for name, fake in self._made:
            genuine = GENUINE[name]
            for method, args, kwargs in fake.method_calls:
                if "." not in method:
                    check_call(getattr(genuine, method), args, kwargs, f"{name}.{method}")


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    required: bool


def signatures(function: Any) -> list[list[Parameter]]:
    """The overloads that a function of the bindings states, without ``self``."""
    documented = function.__doc__ or ""
    name = documented.partition("(")[0]
    numbered = re.findall(rf"^\d+\. ({re.escape(name)}\(.*)$", documented, re.MULTILINE)
    lines = numbered or [documented.partition("\n")[0]]
    return [_parameters(line) for line in lines]


def _parameters(line: str) -> list[Parameter]:
    inside = line[line.index("(") + 1 : line.rindex(")") if " -> " not in line else line.rindex(") -> ")]
    found = []
    for part in _split(inside):
        words = re.fullmatch(r"\s*(\*{0,2}\w+)(?:\s*:\s*(.*?))?(?:\s*=\s*(.*))?\s*", part, re.DOTALL)
        assert words, line
        name, kind, default = words.groups()
        if name != "self":
            found.append(Parameter(name, kind or "object", default is None))
    return found


def _split(text: str) -> list[str]:
    """At the commas that are inside no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def check_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
    overloads = signatures(function)
    problems = [_problem(overload, args, kwargs) for overload in overloads]
    said = "; ".join(filter(None, problems))
    assert "" in problems, f"{name}{args}{kwargs or ''} is no call that TensorRT {tensorrt.__version__} takes: {said}"


def _problem(overload: list[Parameter], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    if len(args) > len(overload):
        return f"{len(args)} arguments for {len(overload)}"
    given = dict(zip((parameter.name for parameter in overload), args, strict=False))
    known = {parameter.name for parameter in overload}
    if wrong := [word for word in kwargs if word in given or word not in known]:
        return f"argument {wrong[0]}"
    given |= kwargs
    for parameter in overload:
        if parameter.name not in given:
            if parameter.required:
                return f"no {parameter.name}"
        elif not _takes(parameter, given[parameter.name]):
            return f"{parameter.name} is {type(given[parameter.name]).__name__}, expected {parameter.kind}"
    return ""


def _takes(parameter: Parameter, value: Any) -> bool:
    """Return True when pybind11 would convert ``value``; kinds that are not listed here always pass."""
    kind = parameter.kind.strip()
    kind = re.sub(r"^(typing\.)?Optional\[(.*)\]$", r"\2", kind).removesuffix(" | None")
    if value is None:
        return kind.startswith((MODULE, "object", "handle", "capsule")) or not parameter.required or "None" in kind
    if kind in ("int", "typing.SupportsInt", "typing.SupportsInt | typing.SupportsIndex"):
        return isinstance(value, int)
    if kind in ("float", "typing.SupportsFloat"):
        return isinstance(value, int | float)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str | bytes) and not isinstance(value, os.PathLike)
    if kind in ("buffer", "typing_extensions.Buffer", "collections.abc.Buffer"):
        return isinstance(value, bytes | bytearray | memoryview | tensorrt.IHostMemory)
    if kind == f"{MODULE}.Dims":
        return isinstance(value, tuple | list | tensorrt.Dims)
    if _SEQUENCES.match(kind):
        return isinstance(value, tuple | list)
    if kind.startswith(f"{MODULE}."):
        first, *parts = kind.removeprefix(f"{MODULE}.").split(".")
        wanted = GENUINE[first]
        for part in parts:
            wanted = getattr(wanted, part)
        return isinstance(value, wanted)
    return True
