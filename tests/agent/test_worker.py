"""The worker process: results and errors return, crashes are contained, stops are quick."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

import psutil
import pytest
from flamest.agent.worker import Worker, WorkerCrashed, WorkStopped, report_progress
from flamest.base.errors import DataError, StorageError
from flamest.base.files import sha256_bytes, sha256_file
from flamest.base.process import Shutdown


@pytest.fixture
def worker():
    with Worker(Shutdown()) as worker:
        yield worker


def test_work_runs_in_another_process_that_is_kept(worker):
    first = worker.call(os.getpid)
    assert first not in (os.getpid(), None)
    assert worker.call(os.getpid) == first == worker.pid
    assert worker.call(sha256_bytes, b"abc")[:4] == "ba78"


def test_progress_of_work_comes_before_its_result(worker):
    seen = []
    assert worker.call(report_progress, (33, 54), on_progress=seen.append) is None
    assert seen == [(33, 54)]

    def fail(_):
        raise StorageError("the disk is full")

    with pytest.raises(StorageError):
        worker.call(report_progress, 1, on_progress=fail)
    assert worker.call(sha256_bytes, b"abc")[:4] == "ba78", "no answer is left over"


def test_an_error_keeps_its_code_and_fix(worker, tmp_path):
    with pytest.raises(StorageError, match="missing") as caught:
        worker.call(sha256_file, tmp_path / "missing")
    assert caught.value.code == "storage"
    assert worker.call(sha256_bytes, b"")


def test_a_killed_worker_is_an_error_and_is_replaced(worker):
    pid = worker.call(os.getpid)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerCrashed):
        worker.call(time.sleep, 30)
    assert worker.call(os.getpid) != pid


def test_a_crashing_runtime_ends_the_worker_and_not_the_daemon(worker):
    with pytest.raises(WorkerCrashed, match="worker process ended"):
        worker.call(ctypes.string_at, 0)  # reads address 0
    assert worker.call(sha256_bytes, b"abc")[:4] == "ba78"


def test_a_stop_ends_a_running_task_within_seconds():
    stop = Shutdown()
    with Worker(stop) as worker:
        worker.call(os.getpid)
        threading.Timer(0.3, stop.request).start()
        started = time.monotonic()
        with pytest.raises(WorkStopped):
            worker.call(time.sleep, 30)
        assert time.monotonic() - started < 10


def test_an_idle_worker_ends_and_a_busy_one_does_not():
    with Worker(Shutdown(), idle_s=0.0) as idle, Worker(Shutdown(), idle_s=60.0) as fresh:
        pids = idle.call(os.getpid), fresh.call(os.getpid)
        time.sleep(0.05)
        idle.rest()
        fresh.rest()
        assert idle.pid is None
        assert not psutil.pid_exists(pids[0])
        assert psutil.pid_exists(pids[1])


def test_an_unexpected_error_is_reported_without_its_message(worker):
    with pytest.raises(WorkerCrashed):
        worker.call(int, "seven")
    assert worker.call(sha256_bytes, b"")


def test_errors_of_the_worker_are_data_errors_where_data_is_wrong(worker):
    from flamest.fedproto.records import decode_run_settings

    with pytest.raises(DataError):
        worker.call(decode_run_settings, b"{}")
