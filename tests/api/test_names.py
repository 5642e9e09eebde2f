"""The names that the package offers: listed, documented, typed, and loaded only when they are used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import flamest as fl
import pytest

ROOT = Path(__file__).resolve().parents[2]
LAZY = """
import sys
import flamest
loaded = sorted(name for name in sys.modules if name.startswith(("flamest.", "numpy", "typer", "msgspec")))
assert not loaded, loaded
assert dir(flamest) == sorted([*flamest.__all__, "__version__"])
flamest.load
assert "onnxruntime" not in sys.modules and "flamest.api.loading" in sys.modules
"""


def test_an_import_loads_nothing_until_a_name_is_used():
    subprocess.run([sys.executable, "-c", LAZY], check=True, cwd=ROOT.parent)


def test_the_names_for_tools_are_those_that_are_loaded():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    for_tools = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert for_tools == fl._HOMES
    assert sorted(for_tools) == list(fl.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'flamest' has no attribute 'simulat'"):
        fl.simulat  # noqa: B018


@pytest.mark.parametrize("name", fl.__all__)
def test_every_name_has_a_docstring_and_every_argument_its_line(name):
    value = getattr(fl, name)
    text = inspect.getdoc(value) or ""
    assert len(text.splitlines()[0]) > 20
    if inspect.isfunction(value):
        missing = [each for each in inspect.signature(value).parameters if f"{each}: " not in text]
        assert missing == []
