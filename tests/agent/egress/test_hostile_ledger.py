"""Whatever is in place of the ledger has a named end, the same for ``egress --verify`` as for the daemon."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from pathlib import Path

import pytest
from flamest.agent.cli.main import app
from flamest.agent.egress.guard import EgressGuard
from flamest.agent.egress.ledger import HEAD_FILE, LEDGER_FILE, Ledger, read_ledger
from flamest.agent.egress.pending_update import PENDING_FILE, read_pending
from flamest.agent.egress.policy import Policy
from flamest.base.errors import DataError, FlamestError
from flamest.fedproto.head import HeadSpec
from typer.testing import CliRunner

SECONDS = 20.0  # within which every file has its end
ENTRY = {"time": "2026-01-02T03:04:05Z", "what": "update", "run": "r", "round": 1, "update_id": "ab" * 16}
GIB = 1 << 30


def forge(folder: Path, *lines: dict | bytes, head: bool = True) -> None:
    """Write lines whose hashes are right, as whoever may write the folder can."""
    before, raw = "0" * 64, []
    for number, line in enumerate(lines, start=1):
        if isinstance(line, dict):
            line = json.dumps({"n": number, **ENTRY, "previous": before, **line}).encode()
        before = hashlib.sha256(line).hexdigest()
        raw.append(line + b"\n")
    (folder / LEDGER_FILE).write_bytes(b"".join(raw))
    if head:
        (folder / HEAD_FILE).write_text(f"{len(lines)} {before}\n")


def with_text(**fields: str):
    """A forged line that holds these texts of JSON as they are."""

    def make(folder: Path) -> None:
        line = json.dumps({"n": 1, **ENTRY, "previous": "0" * 64})[:-1]
        line += "".join(f', "{key}": {text}' for key, text in fields.items()) + "}"
        forge(folder, line.encode())

    return make


def sparse(name: str, size: int, start: bytes = b""):
    def make(folder: Path) -> None:
        forge(folder, {})
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def replaced(name: str, by):
    def make(folder: Path) -> None:
        forge(folder, {})
        (folder / name).unlink()
        by(folder / name)

    return make


def appended(data: bytes):
    def make(folder: Path) -> None:
        forge(folder, {}, {})
        with (folder / LEDGER_FILE).open("ab") as file:
            file.write(data)

    return make


def bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


DEEP = b'{"n":' * 200_000
BROKEN = {
    "a pipe": replaced(LEDGER_FILE, os.mkfifo),
    "a folder": replaced(LEDGER_FILE, os.mkdir),
    "a socket": replaced(LEDGER_FILE, bind),
    "a device": replaced(LEDGER_FILE, lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": replaced(LEDGER_FILE, lambda path: path.symlink_to("nothing")),
    "no ledger, but a head": replaced(LEDGER_FILE, lambda path: None),
    "an empty ledger": replaced(LEDGER_FILE, lambda path: path.touch()),
    "60 GB of zeros": sparse(LEDGER_FILE, 60 * GIB),
    "a line that never ends": sparse(LEDGER_FILE, 60 * GIB, b'{"n":1,"time":"'),
    "many empty lines": replaced(LEDGER_FILE, lambda path: path.write_bytes(b"\n" * (40 << 20))),
    "many lines of rubbish": replaced(LEDGER_FILE, lambda path: path.write_bytes(b"rubbish\n" * (4 << 20))),
    "many lines of another ledger": replaced(LEDGER_FILE, lambda path: path.write_bytes(b"{}\n" * (4 << 20))),
    "a head that is a pipe": replaced(HEAD_FILE, os.mkfifo),
    "a head that is a folder": replaced(HEAD_FILE, os.mkdir),
    "a head that is no UTF-8": replaced(HEAD_FILE, lambda path: path.write_bytes(b"\xff\xfe 1")),
    "a head of 60 GB": sparse(HEAD_FILE, 60 * GIB, b"1 "),
    "a head of another ledger": replaced(HEAD_FILE, lambda path: path.write_text("1 " + "ab" * 32)),
    "a head with control characters": replaced(HEAD_FILE, lambda path: path.write_text("\x1b[2J " + "ab" * 32)),
    "JSON nested deep": appended(DEEP + b"\n"),
    "JSON nested deep in a policy": with_text(policy='{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "a list": appended(b"[]\n"),
    "a loss that is null": with_text(reported='{"loss": null}'),
    "a result that is null": with_text(results='[{"loss": null, "correct": 1, "count": 2}]'),
    "an unknown field": with_text(clip='"name.mp4"'),
    "an unknown kind": with_text(what='"rumour"'),
    "a number of an entry beyond 64 bits": with_text(n=str(2**70)),
    "a negative number of an entry": with_text(n="-1"),
    "a round that is a text": with_text(round='"1"'),
    "a time that is none": with_text(time='"yesterday"'),
    "a time without a zone": with_text(time='"2026-01-02T03:04:05"'),
    "a time of another year count": with_text(time='"99999-01-02T03:04:05Z"'),
    "a rate above one": with_text(privacy='{"rate": 2.0, "multiplier": 1.0, "steps": 1}'),
    "a rate that is negative": with_text(privacy='{"rate": -0.5, "multiplier": 1.0, "steps": 1}'),
    "noise that is negative": with_text(privacy='{"rate": 0.5, "multiplier": -1.0, "steps": 1}'),
    "steps that are negative": with_text(privacy='{"rate": 0.5, "multiplier": 1.0, "steps": -9}'),
    "steps beyond 64 bits": with_text(privacy='{"rate": 0.5, "multiplier": 1.0, "steps": 1' + "0" * 30 + "}"),
    "a line of 2 MiB": with_text(detail='"' + "x" * (2 << 20) + '"'),
    "a line in the middle that is no UTF-8": lambda folder: forge(folder, {}, b'{"run": "\xff"}', {"n": 3}),
    "lines in another order": lambda folder: forge(folder, {"n": 2}, {"n": 1}),
    "a line twice": lambda folder: forge(folder, {}, {"n": 1, "previous": "0" * 64}),
    "bytes of a mark before the first line": lambda folder: forge(folder, b"\xef\xbb\xbf{}", {}),
}
INTACT = {
    "nothing but its first line": lambda folder: forge(folder, {}, head=False),
    "a last line cut short": appended(b'{"n":3,"time":"2026'),
    "a last line cut inside a letter": appended(b'{"n":3,"run":"caf\xc3'),
    "zeros at the end, after a power cut": appended(bytes(5000)),
    "noise too small for a square": with_text(privacy='{"rate": 0.5, "multiplier": 1e-200, "steps": 1}'),
    "a rate too small to divide by": with_text(privacy='{"rate": 1e-320, "multiplier": 1.0, "steps": 1}'),
    "a rate next to one": with_text(privacy='{"rate": 0.9999999999999999, "multiplier": 1.0, "steps": 1}'),
    "many steps": with_text(privacy='{"rate": 0.5, "multiplier": 1.0, "steps": 999999999999}'),
    "a time in the far future": with_text(time='"9999-12-31T23:59:59Z"'),
    "a time long ago": with_text(time='"0001-01-01T00:00:00Z"'),
    "a time with an offset": with_text(time='"0001-01-01T00:00:00+23:59"'),
}


def verify(folder: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["egress", "--state", str(folder), "--verify", "--json"])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]).get("error", {}).get("code", "")


def opened(folder: Path) -> tuple[int, str]:
    """Exit code and error's code of a daemon that opens the ledger and reads its budget."""
    try:
        guard = EgressGuard(folder, Policy(privacy="record-dp"), "a", Ledger.open(folder))
        return (0, "") if guard.epsilon is not None else (70, "no budget")
    except FlamestError as error:
        return error.exit_code, error.code if error.message.isprintable() else "not printable"


@pytest.mark.parametrize("name", BROKEN)
def test_daemon_and_verify_refuse_the_same_files(tmp_path, name):
    BROKEN[name](tmp_path)
    started = time.monotonic()
    ends = {opened(tmp_path), verify(tmp_path)}
    assert time.monotonic() - started < SECONDS
    assert len(ends) == 1
    assert ends <= {(65, "ledger_broken"), (65, "not_a_file"), (74, "storage")}


@pytest.mark.parametrize("name", INTACT)
def test_daemon_and_verify_accept_the_same_files(tmp_path, name):
    INTACT[name](tmp_path)
    assert [opened(tmp_path), verify(tmp_path)] == [(0, ""), (0, "")]
    ledger = Ledger.open(tmp_path)
    ledger.append("update", run="r", round=2)
    ledger.append("refused", code="few_samples")
    assert [opened(tmp_path), verify(tmp_path)] == [(0, ""), (0, "")]
    assert len(read_ledger(tmp_path).entries) >= 3


VALUES = {
    "a loss that is no number": {"reported": {"loss": float("nan")}},
    "an infinite loss": {"reported": {"loss": float("inf")}},
    "an infinite rate": {"policy": {"noise": float("-inf")}},
    "a lone surrogate": {"run": "r\ud800"},
    "a run name of 3 MB": {"run": "r" * 3_000_000},
    "300,000 tensors": {"policy": {"tensors": [["0.weight", 1, 2]] * 300_000}},
    "a text where a number belongs": {"round": "1"},
    "a thing that is no JSON": {"policy": {"x": object()}},
    "a tuple in a policy": {"policy": {"x": (1, 2)}},
    "bytes in a policy": {"policy": {"x": b"\x00"}},
}


@pytest.mark.parametrize("name", VALUES)
def test_what_a_reader_would_not_accept_is_never_written(tmp_path, name):
    ledger = Ledger.open(tmp_path)
    ledger.append("update", run="r", round=1)
    before = (tmp_path / LEDGER_FILE).read_bytes()
    with pytest.raises(DataError) as error:
        ledger.append("update", **VALUES[name])
    assert (error.value.code, error.value.exit_code) == ("not_recordable", 65)
    assert error.value.message.isprintable()
    assert (tmp_path / LEDGER_FILE).read_bytes() == before
    ledger.append("update", run="r", round=2)
    assert [opened(tmp_path), verify(tmp_path)] == [(0, ""), (0, "")]
    assert read_ledger(tmp_path).entries == ledger.content.entries


def test_a_pipe_that_replaces_the_ledger_stops_messages_not_the_daemon(tmp_path):
    ledger = Ledger.open(tmp_path)
    ledger.append("update", run="r", round=1)
    (tmp_path / LEDGER_FILE).unlink()
    os.mkfifo(tmp_path / LEDGER_FILE)
    reader = os.open(tmp_path / LEDGER_FILE, os.O_RDONLY | os.O_NONBLOCK)
    for _ in range(2):
        with pytest.raises(FlamestError) as error:
            ledger.append("update", run="r", round=2)
        assert error.value.exit_code in (65, 74)
    os.close(reader)


def test_two_thousand_lines_are_written_and_read_in_linear_time(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    ledger = Ledger.open(tmp_path)
    started = time.monotonic()
    took = []
    for number in range(2_000):
        ledger.append("update", run="r", round=number, update_id=f"{number:032x}")
        if number % 500 == 499:
            took.append(time.monotonic() - started)
    assert took[3] - took[2] < 3 * (took[0] + 0.2)  # the last quarter is as fast as the first
    started = time.monotonic()
    assert len(read_ledger(tmp_path).entries) == 2_000
    assert time.monotonic() - started < 5


HOSTILE_PENDING = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "JSON nested deep": lambda path: path.write_bytes(DEEP + b"\n"),
    "no UTF-8": lambda path: path.write_bytes(b'{"run_sha256":"\xff"}\n'),
    "60 GB": lambda path: os.truncate(path, 60 * GIB) if path.touch() is None else None,
    "a loss that is null": lambda path: path.write_bytes(b'{"evaluation":{"loss":null}}\n'),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", HOSTILE_PENDING)
def test_a_pending_update_that_is_none_is_a_named_error(tmp_path, name):
    HOSTILE_PENDING[name](tmp_path / PENDING_FILE)
    started = time.monotonic()
    with pytest.raises(DataError) as error:
        read_pending(tmp_path, HeadSpec(4, 3, ()))
    assert error.value.code in ("damaged", "not_a_file", "too_large")
    assert time.monotonic() - started < SECONDS
