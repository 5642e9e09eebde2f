"""A container's quota bounds the cores that are used."""

import os

import pytest
from flamest.base.process import usable_cores

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
        ({"user.slice/cpu.max": "100000 100000\n"}, HERE),  # somebody else's
    ],
)
def test_as_many_as_the_quota_or_the_machine_allows(tmp_path, files, cores):
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
