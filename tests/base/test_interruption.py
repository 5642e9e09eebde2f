"""Commands that a signal ends before they are done: 130 or 143, nothing half done, no child process left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SIGNALS = [signal.SIGINT, signal.SIGTERM]
WITHIN_S = 60.0
WORK = """
import sys
from pathlib import Path
from flamest.base.child_process import ChildProcess
from flamest.base.console import command
from flamest.base.files import new_directory

@command
def work(out, child, as_json):
    with new_directory(out) as building, ChildProcess(child) as started:
        (building / "part").write_text("half")
        print(started.pid, flush=True)
        started.receive(int)

work(Path(sys.argv[1]), Path(sys.argv[2]), as_json="--json" in sys.argv)
"""


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def is_loaded(library: str, process: subprocess.Popen[str]) -> bool:
    return library in Path(f"/proc/{process.pid}/maps").read_text()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_command_and_child_and_leaves_nothing_half_done(tmp_path, number, as_json):
    (tmp_path / "child.py").write_text("import time\ntime.sleep(600)\n")
    words = ["-c", WORK, "out", "child.py", *(["--json"] if as_json else [])]
    process = start(words, tmp_path)
    child = int(process.stdout.readline())
    assert any(name.startswith(".out.") for name in os.listdir(tmp_path))
    process.send_signal(number)
    out, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 128 + number
    assert errors.startswith(f"error: stopped by {'Ctrl-C (SIGINT)' if number == signal.SIGINT else 'SIGTERM'} before")
    assert "  fix: run the same command again" in errors
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["child.py"]
    assert not is_running(child)
    said = json.loads(out.splitlines()[-1]) if as_json else out
    code = "interrupted" if number == signal.SIGINT else "terminated"
    assert not as_json or (said["error"]["code"], said["exit_code"]) == (code, 128 + number)


def test_a_daemon_that_handles_signals_ends_with_0(tmp_path):
    work = (
        "from flamest.base.console import command\n"
        "from flamest.base.process import Shutdown\n"
        "@command\n"
        "def run(as_json):\n"
        "    stop = Shutdown.on_signals()\n"
        "    print('ready', flush=True)\n"
        "    while not stop.wait(5.0): pass\n"
        "    return {'signal': stop.signal}\n"
        "run(as_json=True)\n"
    )
    for number in SIGNALS:
        process = start(["-c", work], tmp_path)
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=WITHIN_S)
        assert (process.returncode, json.loads(out)) == (0, {"signal": number})


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_training_leaves_no_model(tmp_path, number):
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        x=generator.normal(size=(200, 64)).astype(np.float32),
        y=np.array([f"class{row % 4}" for row in range(200)]),
    )
    agent = [sys.executable, "-m", "flamest.agent"]
    subprocess.run(
        [*agent, "import-features", "x.npz", "--store", "s.sqlite"], cwd=tmp_path, check=True, capture_output=True
    )
    words = ["train", "--store", "s.sqlite", "--out", "m.safetensors", "--passes", "1000000", "--json"]
    process = start(["-m", "flamest.agent", *words], tmp_path)
    wait_for(lambda: is_loaded("onnxruntime", process), process)
    process.send_signal(number)
    out, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 128 + number, errors
    assert json.loads(out.splitlines()[-1])["exit_code"] == 128 + number
    assert not [name for name in os.listdir(tmp_path) if "m.safetensors" in name]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_an_export_leaves_no_bundle(tmp_path, number):
    words = ["build", "--backend", "onnx", "--weights", "random:tiny", "--out", "bundle", "--json"]
    process = start(["-m", "flamest.export", *words], tmp_path)
    wait_for(lambda: any(tmp_path.glob(".bundle.*")), process)
    process.send_signal(number)
    out, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 128 + number, errors
    assert json.loads(out.splitlines()[-1])["exit_code"] == 128 + number
    assert os.listdir(tmp_path) == []


def test_two_signals_at_once_are_one_interruption(tmp_path):
    work = (
        "import sys, time\n"
        "from flamest.base.console import command\n"
        "@command\n"
        "def run(as_json):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        time.sleep(0.4)\n"
        "        print('cleaned up', flush=True)\n"
        "run(as_json=False)\n"
    )
    process = start(["-c", work], tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, out) == (130, "cleaned up\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_code_of_a_text_ends_the_command_in_order(tmp_path, number):
    (tmp_path / "work.py").write_text(
        "from flamest.base.console import command\n"
        "@command\n"
        "def run(as_json):\n"
        "    exec('import time; print(1, flush=True); time.sleep(600)')\n"
        "run(as_json=False)\n"
    )
    process = start(["-m", "work"], tmp_path)
    assert process.stdout.readline() == "1\n"
    process.send_signal(number)
    process.communicate(timeout=WITHIN_S)
    assert process.returncode == 128 + number
