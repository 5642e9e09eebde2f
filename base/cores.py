"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """The cores that the system schedules this process on, or fewer where it has a quota of processor time.

    A quota (``docker run --cpus 2``, systemd's ``CPUQuota=``) takes no core away: threads for all of a host's 64 cores
    would share the time of two, and wait for each other. https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max),
    for version 1 https://docs.kernel.org/scheduler/sched-bwc.html
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(cgroups, own))]))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Cores' worth of processor time, of every group that this process is in and that has a limit."""
    for folder in _groups(cgroups, own):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        yield from _cores(quota, period)
    try:
        quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text()
    except OSError:
        return
    yield from _cores(quota, period)


def _groups(cgroups: Path, own: Path) -> Iterator[Path]:
    """Version 2's groups from this process's own up to the root; a container sees its own as the root."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    yield cgroups
    folder = cgroups
    for part in Path(path).parts:
        folder /= part
        yield folder


def _cores(quota: str, period: str) -> Iterator[float]:
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return
    if cores > 0:  # version 1 says -1 for no limit
        yield cores
