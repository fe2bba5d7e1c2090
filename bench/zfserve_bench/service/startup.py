"""Start: how long until requests are answered, and how much memory server and worker then hold."""

import statistics
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_cli.service_process import START_TIMEOUT_S, ServiceFailed, ServiceProcess, running_service
from zfserve_protos.methods import PROJECTION
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve_bench.reports.findings import Finding, Quantity, Report
from zfserve_bench.subject import Subject, noise

WORKER_MODULE = "zfserve_worker"


def measure_startup(subject: Subject) -> Report:
    starts = [_start(subject, number) for number in range(subject.effort.starts)]
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
        f"Median of {len(starts)} starts, the files in the page cache; from the start of the process to an open port "
        "behind checked digests, a warm engine and golden inputs, and to a worker that is ready too.",
        "Memory is measured after one Classify and one Project; pages that both share are counted in each.",
    )
    return Report("Start and memory", "", "", tuple(findings), notes)


def _start(subject: Subject, number: int) -> dict[str, float]:
    began = time.perf_counter()
    with running_service(
        subject.bundle.folder, subject.scratch(f"start-{number}"), "--threads", str(subject.threads)
    ) as service:
        with grpc.insecure_channel(service.address) as channel:
            await_projection(channel)
            projecting_s = time.perf_counter() - began
            _use(subject, channel)
        return {
            "start to Classify": service.starting_s,
            "start to Project": projecting_s,
            "resident memory, server": resident_bytes(service.pid) / 1e6,
            "resident memory, worker": resident_bytes(worker_pid(service)) / 1e6,
        }


def await_projection(channel: grpc.Channel) -> None:
    """Wait until the service says that it can project. Raises ServiceFailed where it never does."""
    request = health_pb2.HealthCheckRequest(service=PROJECTION)
    try:
        for health in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=START_TIMEOUT_S):
            if health.status == health_pb2.HealthCheckResponse.SERVING:
                return
    except grpc.RpcError as error:
        raise ServiceFailed(f"the worker was not ready within {START_TIMEOUT_S:.0f} s") from error
    raise ServiceFailed("the service ended before its worker was ready")


def _use(subject: Subject, channel: grpc.Channel) -> None:
    pixels = noise(subject.bundle.manifest.input, 1)[0]
    height, width, _ = pixels.shape
    image = pb.Image(raw=pb.RawPixels(width=width, height=height, data=pixels.tobytes()))
    vision = VisionServiceStub(channel)
    vision.Classify(pb.ClassifyRequest(image=image), timeout=30)
    highest = subject.bundle.manifest.layers[-1].name
    for _ in vision.Project(pb.ProjectRequest(image=image, layer=highest), timeout=30):
        pass


def worker_pid(service: ServiceProcess) -> int:
    """The worker among the children of the service. Raises ServiceFailed where there is none."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = status_number(status.read_text(), "PPid")
            command = (status.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if parent == service.pid and WORKER_MODULE.encode() in command:
            return int(status.parent.name)
    raise ServiceFailed("the service has no worker")


def resident_bytes(pid: int) -> int:
    """Of physical memory. Source: proc_pid_status(5), where "kB" are 1024 bytes."""
    return status_number(Path(f"/proc/{pid}/status").read_text(), "VmRSS") * 1024


def status_number(status: str, field: str) -> int:
    """The number behind `field` in the text of /proc/PID/status."""
    (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1])
