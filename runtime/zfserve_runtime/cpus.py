"""Counts the CPUs that this process may use, and finds out whether they compute int8 fast. It sizes thread pools.

`os.cpu_count()` counts the CPUs of the machine. A container's quota is lower, and threads beyond the quota only wait
for one another. Sources: for cgroup v2, section "CPU" of the kernel's cgroup-v2.rst; for v1, sched-bwc.rst.
"""

import os
from pathlib import Path

from zfserve_runtime.cgroup import cgroup_folders

_INT8_FLAGS = frozenset(("avx_vnni", "avx512_vnni", "amx_int8"))


def available_cpus(root: Path = Path("/")) -> int:
    """Returns the smaller of the process's CPU affinity and its cgroup's quota (rounded down), at least 1.

    Args:
        root: the folder that holds `proc` and `sys`. Only tests pass another folder than "/".
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in cgroup_folders("cpu", root) if (quota := _quota(folder)) is not None]
    return max(1, min([affinity, *(int(quota) for quota in quotas)]))


def has_int8_instructions(root: Path = Path("/")) -> bool:
    """Returns True if the CPUs are x86 and have instructions that add up 8-bit products in 32 bits (VNNI, AMX).

    Without such instructions int8 is computed in several steps, and another engine may be the fastest.

    Args:
        root: the folder that holds `proc`. Only tests pass another folder than "/".
    """
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not _INT8_FLAGS.isdisjoint(flags)


def _quota(folder: Path) -> float | None:
    """Returns how many CPUs the cgroup at `folder` allows, or None if it sets no limit."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
