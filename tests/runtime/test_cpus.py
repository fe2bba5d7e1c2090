"""Tests the number of CPUs. The cgroup files have the kernel's format and lie in a temporary folder."""

import os
from pathlib import Path

import pytest
from zfserve_runtime.cpus import available_cpus, has_int8_instructions

MACHINE = 8


@pytest.fixture(autouse=True)
def _machine_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MACHINE)))


def layout(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def v1(quota: str, folder: str = "") -> dict[str, str]:
    mount = f"sys/fs/cgroup/cpu/{folder}"
    return {
        "proc/self/cgroup": "4:memory:/pod\n3:cpu,cpuacct:/pod\n1:name=systemd:/",
        f"{mount}cpu.cfs_quota_us": quota,
        f"{mount}cpu.cfs_period_us": "100000",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cgroup.controllers": "cpu"}, MACHINE),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, MACHINE),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "6400000 100000"}, MACHINE),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            },
            3,
        ),
        (v1("200000"), 2),
        (v1("500000", "pod/"), 5),
        (v1("-1"), MACHINE),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_cpus(layout(tmp_path, files)) == expected


def test_affinity_below_the_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "400000 100000"}
    assert available_cpus(layout(tmp_path, files)) == 1


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (None, False),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_vnni amx_int8\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", False),
    ],
)
def test_int8_instructions_are_found_in_the_flags(cpuinfo: str | None, expected: bool, tmp_path: Path) -> None:
    root = layout(tmp_path, {} if cpuinfo is None else {"proc/cpuinfo": cpuinfo})
    assert has_int8_instructions(root) is expected
