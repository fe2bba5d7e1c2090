"""What this process has of CPUs: how many it may really use, which thread pools are sized by, and what they can do.

`os.cpu_count()` is the machine's; a container's quota is below it, and threads beyond the quota only wait for one
another. Source: cgroup v2, section "CPU" of the kernel's cgroup-v2.rst; v1, sched-bwc.rst.
"""

import os
from pathlib import Path, PurePosixPath

_BYTE_PRODUCTS = frozenset(("avx_vnni", "avx512_vnni", "amx_int8"))


def available_cpus(root: Path = Path("/")) -> int:
    """The smaller of the process's CPU affinity and its cgroup's quota (rounded down), at least 1.

    Args:
        root: where `proc` and `sys` are found; other than "/" in tests only.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota(folder)) is not None]
    return max(1, min([affinity, *(int(quota) for quota in quotas)]))


def multiplies_bytes(root: Path = Path("/")) -> bool:
    """Whether these CPUs are x86 with instructions that multiply 8-bit numbers and add up in 32 (VNNI, AMX).

    Without them int8 takes detours, and its engines fare differently.

    Args:
        root: where `proc` is found; other than "/" in tests only.
    """
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not _BYTE_PRODUCTS.isdisjoint(flags)


def _cgroup_folders(root: Path) -> list[Path]:
    """The folders of this process's CPU cgroup and of all above it, any of which may set a quota."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # Without a cgroup namespace the path is the host's and not mounted here; the mount itself then is ours.
        inner = PurePosixPath(path.lstrip("/"))
        folders += [mount / part for part in (inner, *inner.parents)]
    return folders


def _quota(folder: Path) -> float | None:
    """CPUs that the cgroup at `folder` allows; None where it sets no limit."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
