"""This process's cores, memory and orderly end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flamest.base.process import error_location, peak_resident_kb, trim_memory, usable_cores

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, HERE),
        ({"cpu.max": "max 100000\n"}, HERE),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, min(HERE, 2)),
        ({"cpu.max": "6400000 100000\n"}, HERE),
        ({"cpu.max": "nonsense\n"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, HERE),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "50000\n"}, HERE),
        ({"system.slice/flamest-agent.service/cpu.max": "100000 100000\n"}, 1),  # systemd's CPUQuota=100%
        ({"system.slice/cpu.max": "100000 100000\n", "system.slice/flamest-agent.service/cpu.max": "max 100000\n"}, 1),
        ({"user.slice/cpu.max": "100000 100000\n"}, HERE),  # another service's
    ],
)
def test_usable_cores_are_the_smaller_of_quota_and_machine(tmp_path, files, cores):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own = tmp_path / "own"
    own.write_text("1:cpu:/\n0::/system.slice/flamest-agent.service\n")
    assert usable_cores(tmp_path, own) == cores
    own.unlink()
    if not any("slice" in name for name in files):
        assert usable_cores(tmp_path, own) == cores


def test_tuning_malloc_breaks_nothing_with_or_without_glibc():
    code = "from flamest.base.process import tune_malloc; assert tune_malloc() in (True, False); b'x' * (20 << 20)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_memory_peak_is_the_process_own_not_its_parents():
    block = b"x" * (64 << 20)  # resident, unlike zeros
    code = "from flamest.base.process import peak_resident_kb; print(peak_resident_kb())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert len(block) == 64 << 20
    assert 4 << 10 < int(done.stdout) < 60 << 10 < peak_resident_kb()


def test_trimming_memory_breaks_nothing_with_or_without_glibc():
    assert trim_memory() in (True, False)


LOOP = """
import sys
from flamest.base.process import Shutdown
stop = Shutdown.on_signals()
print("ready", flush=True)
stop.wait(20)
if sys.argv[1] == "stuck":
    import time; time.sleep(20)
print("ended in order", flush=True)
"""


@pytest.mark.parametrize(("mode", "signals", "status"), [("fine", 1, 0), ("stuck", 2, 128 + signal.SIGTERM)])
def test_the_first_sigterm_requests_the_end_and_the_second_forces_it(mode, signals, status):
    process = subprocess.Popen([sys.executable, "-c", LOOP, mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(signals):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.2)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == status
    assert ("ended in order" in out) == (status == 0)


def test_an_error_location_names_types_and_places_without_messages():
    try:
        try:
            {}["patient 7"]
        except KeyError as error:
            raise ValueError("walking") from error
    except ValueError as error:
        text = error_location(error)
    here = f"{Path(__file__).parent.name}/{Path(__file__).name}"
    assert text.startswith(f"ValueError in {here}:")
    assert f"; after KeyError in {here}:" in text
    assert "patient" not in text
    assert "walking" not in text
