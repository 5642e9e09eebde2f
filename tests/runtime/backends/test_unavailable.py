"""Every reason has a code, a meaning and a fix, and can become an error with an exit code."""

import pickle
from pathlib import Path

import pytest
from flamest.base.errors import DataError, FlamestError
from flamest.runtime.backends.unavailable import TABLE, BackendUnavailable, Code, unavailable


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_meaning_and_a_fix(code):
    entry = TABLE[code]
    assert entry.meaning
    assert entry.meaning[-1] != "."
    assert any(word in entry.fix for word in ("pip install", "flamest-", "--backend", "nvidia-smi", "copy the bundle"))
    assert issubclass(entry.error, FlamestError)
    assert entry.error.exit_code in (65, 77, 78)


@pytest.mark.parametrize("code", Code)
def test_a_reason_survives_as_an_error(code):
    reason = unavailable(code, "seen with own eyes")
    error = reason.error()
    assert error.code == code.value
    assert error.message == f"{code}: seen with own eyes"
    assert error.fix == reason.fix
    assert BackendUnavailable.of(pickle.loads(pickle.dumps(error))) == reason


def test_the_documentation_lists_every_code_with_its_meaning_and_fix():
    page = (Path(__file__).parents[3] / "docs" / "reference" / "error-codes.md").read_text().lower()
    for code, entry in TABLE.items():
        assert f"| `{code}` | {entry.error.exit_code} | {entry.meaning}. | {entry.fix} |".lower() in page


def test_an_error_without_a_known_code_keeps_its_message():
    reason = BackendUnavailable.of(DataError("the graph is cracked", code="bad_graph"))
    assert reason.code is Code.BACKEND_FAILED
    assert "bad_graph: the graph is cracked" in reason.evidence
    assert reason.fix


def test_a_specific_fix_replaces_the_tables():
    assert unavailable(Code.PLAN_GPU, "built for sm_75").fix == TABLE[Code.PLAN_GPU].fix
    assert unavailable(Code.PLAN_GPU, "built for sm_75", fix="flamest-export --here").fix == "flamest-export --here"
