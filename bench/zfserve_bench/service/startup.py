"""Benchmark `startup`: measures the time until requests are answered, and the memory of server and worker then."""

import statistics
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_cli.service_process import START_TIMEOUT_S, ServiceFailed, ServiceProcess, running_service
from zfserve_protos.methods import PROJECTION
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images, raw_request
from zfserve_bench.reports.findings import Finding, Quantity, Report

WORKER_MODULE = "zfserve_worker"


def measure_startup(config: BenchmarkConfig) -> Report:
    starts = [_start(config, number) for number in range(config.effort.starts)]
    findings = []
    for name, unit in (
        ("start to Classify", "s"),
        ("start to Project", "s"),
        ("resident memory, server", "MB"),
        ("resident memory, worker", "MB"),
    ):
        median = Quantity(statistics.median(start[name] for start in starts), unit)
        findings.append(Finding(name, median, None, median))
    notes = (
        f"Median of {len(starts)} starts with the files in the page cache. Start to Classify: from the start of the "
        "process to an open port, after checked digests, a warm engine and golden inputs. Start to Project: to a ready "
        "worker.",
        "Memory is measured after one Classify and one Project. Pages that both processes share are counted in each.",
    )
    return Report("Start and memory", "", "", tuple(findings), notes)


def _start(config: BenchmarkConfig, number: int) -> dict[str, float]:
    began = time.perf_counter()
    with running_service(
        config.bundle.folder, config.scratch(f"start-{number}"), "--threads", str(config.threads)
    ) as service:
        with grpc.insecure_channel(service.address) as channel:
            await_projection(channel)
            projecting_s = time.perf_counter() - began
            _call_once(config, channel)
        return {
            "start to Classify": service.starting_s,
            "start to Project": projecting_s,
            "resident memory, server": resident_bytes(service.pid) / 1e6,
            "resident memory, worker": resident_bytes(worker_pid(service)) / 1e6,
        }


def await_projection(channel: grpc.Channel) -> None:
    """Waits until the service reports that it can project. Raises ServiceFailed if it never does."""
    request = health_pb2.HealthCheckRequest(service=PROJECTION)
    try:
        for health in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=START_TIMEOUT_S):
            if health.status == health_pb2.HealthCheckResponse.SERVING:
                return
    except grpc.RpcError as error:
        raise ServiceFailed(f"the worker was not ready within {START_TIMEOUT_S:.0f} s") from error
    raise ServiceFailed("the service ended before its worker was ready")


def _call_once(config: BenchmarkConfig, channel: grpc.Channel) -> None:
    classify = pb.ClassifyRequest.FromString(raw_request(random_images(config.bundle.manifest.input, 1)[0]))
    vision = VisionServiceStub(channel)
    vision.Classify(classify, timeout=30)
    highest = config.bundle.manifest.layers[-1].name
    for _ in vision.Project(pb.ProjectRequest(image=classify.image, layer=highest), timeout=30):
        pass


def worker_pid(service: ServiceProcess) -> int:
    """Returns the process id of the service's worker. Raises ServiceFailed if it has none."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = status_number(status.read_text(), "PPid")
            command = (status.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:  # the process ended meanwhile
            continue
        if parent == service.pid and WORKER_MODULE.encode() in command:
            return int(status.parent.name)
    raise ServiceFailed("the service has no worker")


def resident_bytes(pid: int) -> int:
    """Returns the resident memory in bytes. Source: proc_pid_status(5), where "kB" means 1024 bytes."""
    return status_number(Path(f"/proc/{pid}/status").read_text(), "VmRSS") * 1024


def status_number(status: str, field: str) -> int:
    """Returns the number of `field` in the text of /proc/PID/status."""
    (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1])
