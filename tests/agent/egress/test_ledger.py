"""The egress ledger: written before anything is sent, never shortened; changes are found."""

import errno
import os

import pytest
from flamest.agent.egress import ledger as ledger_module
from flamest.agent.egress.accountant import Spend
from flamest.agent.egress.entry import TensorSent
from flamest.agent.egress.ledger import HEAD_FILE, LEDGER_FILE, Ledger, read_ledger
from flamest.base.errors import DataError, StorageError


def update(number: int, **more):
    tensors = (TensorSent("0.weight", (2, 3), "float32"),)
    return {"run": "r", "round": number, "update_id": f"{number:032x}", "tensors": tensors, "bytes": 24, **more}


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger.open(tmp_path)
    for number in range(1, 5):
        ledger.append("update", **update(number, sha256=f"{number:064x}"))
    return ledger


def lines(folder):
    return (folder / LEDGER_FILE).read_bytes().splitlines(keepends=True)


def rewrite(folder, content):
    (folder / LEDGER_FILE).write_bytes(b"".join(content))


def test_every_line_holds_the_hash_of_the_one_before(ledger, tmp_path):
    content = read_ledger(tmp_path)
    assert content.problems == []
    assert [entry.n for entry in content.entries] == [1, 2, 3, 4]
    assert content.entries == ledger.content.entries
    assert content.head == ledger.content.head
    assert content.entries[0].previous == "0" * 64
    assert len({entry.previous for entry in content.entries}) == 4
    assert (tmp_path / LEDGER_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_a_removed_line_is_found(ledger, tmp_path, gone):
    kept = lines(tmp_path)
    del kept[gone]
    rewrite(tmp_path, kept)
    assert read_ledger(tmp_path).problems
    with pytest.raises(DataError) as error:
        Ledger.open(tmp_path)
    assert error.value.code == "ledger_broken"


@pytest.mark.parametrize("line", [0, 1, 2, 3])
def test_a_changed_line_is_found(ledger, tmp_path, line):
    kept = lines(tmp_path)
    kept[line] = kept[line].replace(b'"bytes":24', b'"bytes":23')
    rewrite(tmp_path, kept)
    assert read_ledger(tmp_path).problems


def test_a_missing_ledger_is_noticed(ledger, tmp_path):
    (tmp_path / LEDGER_FILE).unlink()
    assert read_ledger(tmp_path).problems
    (tmp_path / HEAD_FILE).unlink()
    empty = read_ledger(tmp_path)
    assert (empty.entries, empty.head, empty.problems) == ([], "0" * 64, [])


def test_a_line_cut_short_by_a_crash_stays(ledger, tmp_path):
    *kept, last = lines(tmp_path)
    rewrite(tmp_path, [*kept, last, last[:40]])
    again = Ledger.open(tmp_path)
    again.append("update", **update(5))
    content = read_ledger(tmp_path)
    assert (content.problems, content.cut_short, len(content.entries)) == ([], 1, 5)
    assert last[:40] in (tmp_path / LEDGER_FILE).read_bytes()


def test_a_crash_before_the_head_was_written_is_no_loss(ledger, tmp_path):
    head = (tmp_path / HEAD_FILE).read_bytes()
    ledger.append("update", **update(5))
    (tmp_path / HEAD_FILE).write_bytes(head)
    assert read_ledger(tmp_path).problems == []


def test_the_ledger_resumes_after_a_full_disk(ledger, tmp_path, monkeypatch):
    write = os.write

    def full(handle, data):
        write(handle, bytes(data[:30]))  # the disk takes a part of the line
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ledger_module.os, "write", full)
        for _ in range(2):
            with pytest.raises(StorageError, match="not sent") as error:
                ledger.append("update", **update(5))
            assert error.value.code == "disk_full"
    ledger.append("update", **update(5))
    content = read_ledger(tmp_path)
    assert (content.problems, len(content.entries), content.entries[-1].n) == ([], 5, 5)


def test_a_line_written_despite_an_error_is_not_written_twice(ledger, tmp_path, monkeypatch):
    def failing(handle):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(ledger_module.os, "fsync", failing)
        with pytest.raises(StorageError):
            ledger.append("update", **update(5))
    ledger.append("update", **update(6))
    content = read_ledger(tmp_path)
    assert (content.problems, [entry.round for entry in content.entries]) == ([], [1, 2, 3, 4, 5, 6])


def test_the_line_is_durable_before_append_returns(tmp_path, monkeypatch):
    calls = []
    for name in ("write", "fsync"):
        real = getattr(os, name)

        def watched(*arguments, name=name, real=real):
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(ledger_module.os, name, watched)
    Ledger.open(tmp_path).append("update", **update(1))
    assert calls[:2] == ["write", "fsync"]


def test_the_same_update_sent_again_spends_no_privacy_an_equal_one_does(tmp_path):
    """Two updates of equal bytes are two answers; a learning rate of half a rounding step leaves two values only."""
    ledger = Ledger.open(tmp_path)
    spend = Spend(0.1, 1.0, 10)
    for number, sha256 in ((1, "aa"), (1, "aa"), (2, "aa"), (3, "bb")):
        ledger.append("update", **update(number, sha256=sha256, privacy=spend))
    assert list(read_ledger(tmp_path).spends().values()) == [spend] * 3


def test_evaluations_of_lines_without_results_count_against_the_quotas(ledger):
    """Lines of an earlier version have the first figures alone, or a number of models."""
    figures = {"loss": 0.5, "correct": 3.0, "count": 9.0}
    ledger.append("update", **update(11, reported=figures))
    ledger.append("update", **update(12))
    ledger.append("evaluation", run_sha256="a", models=4, reported=figures)
    now = ledger.now()
    assert ledger.content.quotas.evaluations(now) == 5
    assert read_ledger(ledger.state).quotas.evaluations(now) == 5
