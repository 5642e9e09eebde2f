import pickle
import traceback

import pytest
from flamest.base import errors
from flamest.base.errors import DataError, FlamestError, MissingExtra


def test_every_error_has_an_exit_code_of_the_table():
    table = {1, 2, 65, 69, 70, 74, 75, 77, 78, 130, 143}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FlamestError)]
    assert {kind.exit_code for kind in kinds} == table


def test_an_error_keeps_its_fix_and_code_across_processes():
    error = pickle.loads(pickle.dumps(DataError("broken", fix="copy it again", code="video_damaged")))
    assert (error.message, error.fix, error.code, error.exit_code) == ("broken", "copy it again", "video_damaged", 65)


def test_a_missing_extra_names_the_command_that_installs_it():
    error = MissingExtra("onnxruntime", extra="agent")
    assert "onnxruntime" in error.message
    assert error.fix == "pip install 'flamest[agent]'"
    assert "'grpcio'" in MissingExtra("grpc", extra="agent").message
    assert pickle.loads(pickle.dumps(error)).fix == error.fix


@pytest.mark.parametrize(
    "kind",
    [k for k in vars(errors).values() if isinstance(k, type) and k is not MissingExtra and issubclass(k, FlamestError)],
)
def test_every_error_prints_its_message(kind):
    assert str(kind("what was wrong")) == "what was wrong"


def test_a_traceback_shows_the_fix():
    error = pickle.loads(pickle.dumps(DataError("broken", fix="copy it again")))
    assert traceback.format_exception(error)[-1] == "fix: copy it again\n"


def test_an_error_on_one_line_keeps_message_and_fix_apart():
    assert DataError("the disk is full", fix="free some space").with_fix == "the disk is full (fix: free some space)"
    assert DataError("the disk is full").with_fix == "the disk is full"
