"""All environment variables are in one list, base/environment.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from flamest.base.environment import LOG_FORMAT, VARIABLES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("base", "export", "runtime", "fedproto", "agent", "coordinator", "experiments", "api")
# Uses that name no variable to read: the whole environment handed to a child process, and values that are set.
WHOLE = {"base/child_process.py", "experiments/processes.py"}
SET = {"__init__.py": "ORT_DISABLE_TELEMETRY", "fedproto/calls.py": "GRPC_VERBOSITY"}


def uses_of_the_environment(path: Path) -> list[int]:
    """Return the lines that use ``os.environ`` or ``os.getenv``."""
    return sorted(
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
    )


def test_no_module_reads_the_environment_but_through_the_list():
    allowed = {"base/environment.py", *WHOLE, *SET}
    files = [ROOT / "__init__.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        if str(path.relative_to(ROOT)) not in allowed
        for line in uses_of_the_environment(path)
    ]
    assert wrong == []


def test_what_a_module_sets_is_in_the_list():
    known = {variable.name for variable in VARIABLES}
    for file, name in SET.items():
        assert name in known
        assert name in (ROOT / file).read_text()


def test_the_rule_finds_a_read(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import os\nos.environ.get('A')\nos.getenv('B')\n")
    assert uses_of_the_environment(file) == [2, 3]


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_a_variable_is_described_for_the_person_who_sets_it(variable):
    assert variable.name.isupper()
    assert variable.meaning.endswith(".")
    assert variable.default
    assert variable.readers


def test_a_variable_that_is_not_set_is_empty(monkeypatch):
    monkeypatch.delenv(LOG_FORMAT.name, raising=False)
    assert LOG_FORMAT.value() == ""
    monkeypatch.setenv(LOG_FORMAT.name, "json")
    assert LOG_FORMAT.value() == "json"
