"""Describes the machine and the libraries of a benchmark run, without which its figures mean nothing. Linux only."""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zfserve_runtime.cpus import available_cpus

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "openvino", "torch", "grpcio", "numpy", "pillow")


@dataclass(frozen=True)
class Machine:
    """Describes a machine and its software.

    Attributes:
        cpu: the name of the CPU model.
        cores: the number of logical CPUs that this process may use, of `cores_in_all`.
        versions: the versions of Python and of the libraries that do the work.
        load: the load average of the minute before the benchmarks began.
        date: the start of the benchmarks, ISO 8601, UTC.
    """

    cpu: str
    cores: int
    cores_in_all: int
    system: str
    versions: dict[str, str]
    load: float
    date: str


def describe_machine() -> Machine:
    """Returns the description of this machine."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # for example, onnxruntime-gpu replaces onnxruntime
    return Machine(
        cpu=cpu_model(Path("/proc/cpuinfo").read_text()),
        cores=available_cpus(),
        cores_in_all=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        versions=versions,
        load=os.getloadavg()[0],
        date=datetime.now(UTC).isoformat(timespec="minutes"),
    )


def cpu_model(cpuinfo: str) -> str:
    """Returns the name of the first processor in the text of /proc/cpuinfo, or the architecture if it has no name."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()
