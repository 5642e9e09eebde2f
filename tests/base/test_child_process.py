"""Children that answer, crash, hang and lie: each end is described, and nothing of a child is left."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from flamest.base.channel import Channel, Failed, Message
from flamest.base.child_process import (
    ChildEnded,
    ChildProcess,
    ChildProtocolError,
    ChildTimeout,
    ask_child,
    describe_status,
)
from flamest.base.errors import DataError, FlamestError, MissingExtra

PROGRAM = """
import os, sys, time
from flamest.base.channel import Channel, Message

class Question(Message, frozen=True):
    word: str

class Answer(Message, frozen=True):
    word: str

parent = Channel.to_parent()
{does}
"""


class Question(Message, frozen=True):
    word: str


class Answer(Message, frozen=True):
    word: str


@pytest.fixture
def program(tmp_path):
    def write(does):
        (tmp_path / "child.py").write_text(PROGRAM.format(does=does))
        return tmp_path / "child.py"

    return write


def ended(program, **options):
    with pytest.raises(ChildEnded) as caught:
        ask_child(program, Question("x"), Answer, **{"timeout_s": 60.0} | options)
    return caught.value


def test_a_question_is_answered_and_the_child_is_gone(program):
    echo = program("question, _ = parent.receive(Question)\nparent.send(Answer(question.word + sys.argv[2]))")
    with ChildProcess(echo, "!") as child:
        child.send(Question("hello"))
        assert child.receive(Answer | Failed) == (Answer("hello!"), b"")
        pid = child.pid
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("does", "status", "said"),
    [
        ("os.write(2, b'why'); os.kill(os.getpid(), 11)", -signal.SIGSEGV, "signal SIGSEGV: why"),
        ("print('why', flush=True); sys.exit(3)", 3, "status 3: why"),
        ("os._exit(0)", 0, "no answer"),
        ("raise KeyError('x')", 1, "KeyError: 'x'"),
    ],
)
def test_the_end_of_a_child_is_described_with_its_output(program, does, status, said):
    error = ended(program(does))
    assert error.status == status
    assert said in str(error)


def test_a_child_that_hangs_is_killed_in_time(program):
    before = time.monotonic()
    error = ended(program("os.write(2, b'loading'); time.sleep(60)"), timeout_s=3.0)
    assert isinstance(error, ChildTimeout)
    assert str(error) == "no answer within 3 s: loading"
    assert time.monotonic() - before < 20


def test_a_child_that_answers_nonsense_is_killed(program):
    error = ended(program("parent.send(Question('no answer'))"))
    assert isinstance(error, ChildProtocolError)
    assert error.status is None


def test_a_program_that_cannot_start_is_an_end_too(program, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "cannot start /no/such/python" in str(ended(program("")))


def test_long_output_does_not_block_a_child(program):
    error = ended(program("os.write(2, b'x' * 300_000); os.write(2, b'end'); sys.exit(1)"))
    assert error.output.endswith("xend")
    assert len(error.output) == 2000


def test_a_child_sees_that_its_parent_is_gone(program):
    child = ChildProcess(program("try: parent.receive(Question)\nexcept EOFError: os._exit(0)"))
    child.close(within_s=30.0)
    assert not child.running


def test_a_file_in_the_current_folder_shadows_no_package(program, tmp_path, monkeypatch):
    (tmp_path / "msgspec.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert ask_child(program("parent.send(Answer('ok'))"), None, Answer, timeout_s=60.0) == Answer("ok")


def test_a_removed_current_folder_does_not_matter(program, tmp_path, monkeypatch):
    (tmp_path / "removed").mkdir()
    monkeypatch.chdir(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    assert ask_child(program("parent.send(Answer('ok'))"), None, Answer, timeout_s=60.0) == Answer("ok")


def test_an_error_crosses_with_code_message_and_fix():
    error = Failed.of(DataError("bad", fix="fix it", code="odd")).error()
    assert type(error) is DataError
    assert (error.code, error.message, error.fix) == ("odd", "bad", "fix it")
    missing = Failed.of(MissingExtra("onnxruntime", extra="agent")).error()
    assert (type(missing), missing.exit_code, missing.code) == (MissingExtra, 78, "missing_extra")
    assert type(Failed("odd", "bad", "", kind="NotOurs").error()) is FlamestError


def test_a_descriptor_travels_with_a_message(tmp_path):
    (tmp_path / "file").write_text("content")
    ours, theirs = map(Channel, socket.socketpair())
    with (tmp_path / "file").open("rb") as file:
        ours.send(Question("read"), descriptor=file.fileno())
    message, descriptor = theirs.receive_with_descriptor(Question)
    assert message == Question("read")
    assert os.read(descriptor, 100) == b"content"
    os.close(descriptor)
    ours.close()
    theirs.close()


def test_an_answer_nested_too_deeply_is_a_protocol_error(program):
    nested = "b'{\"x\":' * 100_000"
    does = f"data = {nested}; parent._connection.sendall((len(data)).to_bytes(4, 'little') + bytes(8) + data)"
    with ChildProcess(program(does)) as child, pytest.raises(ChildProtocolError, match="nested too deeply"):
        child.receive(Answer | Question, timeout_s=10)


def test_the_current_folder_is_on_the_childs_path_only_when_named(program, tmp_path, monkeypatch):
    (tmp_path / "named_by_pythonpath.py").write_text("word = 'found'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = program("import named_by_pythonpath; parent.send(Answer(named_by_pythonpath.word))")
    with pytest.raises(ChildEnded, match="named_by_pythonpath"):
        ask_child(path, None, Answer, timeout_s=10)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ask_child(path, None, Answer, timeout_s=10).word == "found"


def test_messages_larger_than_agreed_are_not_read():
    ours, theirs = map(Channel, socket.socketpair())
    theirs.send(Answer("x"), b"x" * 100)
    with pytest.raises(ValueError, match="at most 1048576 \\+ 99"):
        ours.receive(Answer, largest_payload=99)
    ours.close()
    theirs.close()


def test_endless_output_is_read_and_dropped(program):
    writes = "for _ in range(300): os.write(2, b'x' * (1 << 20))\nos.write(2, b'end'); sys.exit(1)"
    with ChildProcess(program(f"question, _ = parent.receive(Question)\n{writes}")) as child:
        child.send(Question("x"))
        before = resident_mb()
        with pytest.raises(ChildEnded) as caught:
            child.receive(Answer, timeout_s=120)
        assert caught.value.output.endswith("xend")
        assert resident_mb() - before < 10


def test_output_while_the_parent_does_not_listen_takes_no_memory(program):
    does = "for _ in range(300): os.write(2, b'x' * (1 << 20))"
    with ChildProcess(program(does)) as child:
        time.sleep(2)
        assert os.stat(f"/proc/{child.pid}/fd/2").st_size <= 1 << 20


def test_a_child_that_reads_no_message_does_not_block_its_parent(program):
    with ChildProcess(program("time.sleep(60)")) as child:
        started = time.monotonic()
        child.send(Question("x" * (1 << 19)), timeout_s=2.0)
        with pytest.raises(ChildTimeout, match="read no message within 2 s"):
            child.receive(Answer, timeout_s=60)
        assert time.monotonic() - started < 20
        assert not child.running


def test_a_child_that_writes_and_does_not_read_is_ended_too(program):
    with ChildProcess(program("while True: os.write(2, b'x' * 4096)")) as child:
        child.send(Question("x" * (1 << 19)), timeout_s=2.0)
        with pytest.raises(ChildTimeout):
            child.receive(Answer, timeout_s=60)


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.parametrize(("status", "words"), [(0, "status 0"), (-9, "signal SIGKILL"), (-250, "signal 250")])
def test_a_status_has_words(status, words):
    assert describe_status(status) == words
