"""Finds the cgroups of this process, whose limits are below those of the machine. `cpus` and `memory` read the limits.

Sources: for cgroup v2, the kernel's cgroup-v2.rst; for v1, sched-bwc.rst and memory.rst.
"""

from pathlib import Path, PurePosixPath


def cgroup_folders(controller: str, root: Path) -> list[Path]:
    """Returns the folders of this process's cgroup and of its ancestors. Each may set a limit.

    Args:
        controller: the controller whose cgroup is looked up in cgroup v1: "cpu" or "memory". v2 has one cgroup for all.
        root: the folder that holds `proc` and `sys`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        # Without a cgroup namespace the path is the host's, and is not mounted here. Then the mount itself is our
        # cgroup.
        inner = PurePosixPath(path.lstrip("/"))
        folders += [mount / part for part in (inner, *inner.parents)]
    return folders
