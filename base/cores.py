"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """The cores that the system schedules this process on, or fewer where a container has a quota of processor time.

    A quota (``docker run --cpus 2``) takes no core away: threads for all of a host's 64 cores would share the time of
    two, and wait for each other. https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), for version 1
    https://docs.kernel.org/scheduler/sched-bwc.html
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroups)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroups: Path) -> float | None:
    """Cores' worth of processor time; None where there is no limit, or nothing to read it from."""
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return cores if cores > 0 else None  # version 1 says -1 for no limit
