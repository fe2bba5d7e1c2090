"""Where and with what a benchmark ran: without that, its figures say nothing. Linux only, like the benchmarks."""

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
    """Attributes:
    cores: that this process may use, of `cores_in_all`.
    versions: of Python and of the libraries that do the work.
    load: of the last minute, when the benchmarks began: processes that wanted a core.
    date: ISO 8601, UTC.
    """

    cpu: str
    cores: int
    cores_in_all: int
    system: str
    versions: dict[str, str]
    load: float
    date: str


def describe_machine() -> Machine:
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # onnxruntime-gpu, for one, brings the module under another name
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
    """The first processor's name in the text of /proc/cpuinfo, where it has one."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()
