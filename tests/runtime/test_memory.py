"""Tests the memory limit. The cgroup files have the kernel's format and lie in a temporary folder."""

import os
from pathlib import Path

import pytest
from zfserve_runtime.memory import available_memory

MIB = 1024**2
MACHINE = 8192 * MIB


def layout(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def v1(limit: int) -> dict[str, str]:
    return {
        "proc/self/cgroup": "4:memory:/pod\n3:cpu,cpuacct:/pod\n1:name=systemd:/",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(limit),
    }


@pytest.mark.parametrize(
    ("files", "mebibytes"),
    [
        ({}, 8192),
        ({"proc/self/cgroup": "0::/"}, 8192),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, 8192),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": str(2048 * MIB)}, 2048),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": str(99_999 * MIB)}, 8192),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/memory.max": str(512 * MIB),
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
            512,
        ),
        (v1(1024 * MIB), 1024),
        (v1(9223372036854771712), 8192),  # what cgroup v1 says where no limit is set
    ],
)
def test_the_smallest_limit_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], mebibytes: int
) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": MACHINE // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert available_memory(layout(tmp_path, files)) == mebibytes * MIB


def test_this_process_has_a_limit() -> None:
    assert available_memory() > 64 * MIB
