"""Finds out how much memory this process may use. It sizes the caches and the batches of the worker.

A container's limit is lower than the machine's memory, and the kernel kills a process that exceeds it. Sources: for
cgroup v2, section "Memory" of the kernel's cgroup-v2.rst; for v1, memory.rst.
"""

import os
from pathlib import Path

from zfserve_runtime.cgroup import cgroup_folders


def available_memory(root: Path = Path("/")) -> int:
    """Returns the smaller of the machine's memory and the limits of the process's cgroups, in bytes.

    Args:
        root: the folder that holds `proc` and `sys`. Only tests pass another folder than "/".
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (_limit(folder) for folder in cgroup_folders("memory", root))
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit(folder: Path) -> int | None:
    """Returns how many bytes the cgroup at `folder` allows, or None if it sets no limit.

    cgroup v1 writes a limit beyond any machine's memory where none is set.
    """
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        return None if text == "max" else int(text)
    return None
