"""Benchmark `capacity`: computes the size of a node pool for a number of images per hour, from measurements here.

docs/capacity.md explains the formulas.
"""

import math
import statistics
import time
from dataclasses import dataclass

import grpc
from zfserve_cli.service_process import running_service
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.fleet.replicas import address_of, running_fleet
from zfserve_bench.inputs import JPEG_HEIGHT, JPEG_WIDTH, jpeg_files
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import Kind
from zfserve_bench.reports.findings import Finding, Quantity, Report
from zfserve_bench.service.startup import await_projection, resident_bytes, worker_pid
from zfserve_bench.services import usable_cpus

IMAGES_PER_HOUR = (1_000, 100_000, 10_000_000)

UTILISATION = 0.6
"""The planned load over the measured capacity. The rest is a reserve for uneven arrivals, for the start of new
replicas, and for a replica that is down."""

EXPLAINED_SHARE = 0.01
"""The share of photos whose nine strongest projections are requested too."""

CPUS_PER_REPLICA = 2
CPUS_PER_WORKER = 2
"""The CPU requests of the pods in deploy/base."""

MIN_REPLICAS = 2
"""The least number of replicas and of workers, so that one may be down."""

MEMORY_MARGIN = 1.5
"""The planned memory over the resident memory. The rest is for photos in flight, and for a new model version."""

CPUS_PER_NODE = 15
"""The CPUs for pods of a node with 16 CPUs. One is for the node's own agents."""

CLIENTS_PER_REPLICA = 16
MAPS = 9


@dataclass(frozen=True)
class Measured:
    """Holds the measurements on one machine.

    Attributes:
        precision: the precision of the served graph.
        images_per_s: the rate of classified JPEG files, by replicas with one CPU each on all of `cpus`.
        cpus: the number of logical CPUs; two may belong to one core.
        explanations_per_s: the rate of photos with their nine strongest projections, by one worker on all of `cpus`.
        server_mb, worker_mb: resident memory of each process.
        bytes_per_image: the mean size of a request and its answer together.
    """

    precision: str
    images_per_s: float
    cpus: int
    explanations_per_s: float
    server_mb: float
    worker_mb: float
    bytes_per_image: float


@dataclass(frozen=True)
class Plan:
    """Holds the size of a node pool.

    Attributes:
        cpus: the CPUs for classification at `UTILISATION`, before they are rounded up to whole replicas.
        replicas, workers: the numbers of pods with `CPUS_PER_REPLICA` and `CPUS_PER_WORKER` each.
        memory_gb: the memory of all pods together.
        nodes: the number of nodes with `CPUS_PER_NODE` for pods.
        mbit_per_s: the traffic to and from clients.
    """

    images_per_hour: float
    cpus: float
    replicas: int
    workers: int
    memory_gb: float
    nodes: int
    mbit_per_s: float


def plan(measured: Measured, images_per_hour: float) -> Plan:
    """Returns the node pool for a number of images per hour."""
    per_s = images_per_hour / 3600
    cpus = per_s / (measured.images_per_s / measured.cpus * UTILISATION)
    replicas = max(MIN_REPLICAS, math.ceil(cpus / CPUS_PER_REPLICA))
    explained_by_one = measured.explanations_per_s * CPUS_PER_WORKER / measured.cpus
    workers = max(MIN_REPLICAS, math.ceil(per_s * EXPLAINED_SHARE / (explained_by_one * UTILISATION)))
    memory_mb = (replicas * measured.server_mb + workers * measured.worker_mb) * MEMORY_MARGIN
    return Plan(
        images_per_hour,
        cpus,
        replicas,
        workers,
        memory_mb / 1e3,
        math.ceil((replicas * CPUS_PER_REPLICA + workers * CPUS_PER_WORKER) / CPUS_PER_NODE),
        per_s * measured.bytes_per_image * 8 / 1e6,
    )


def measure_capacity(config: BenchmarkConfig) -> Report:
    if not config.photos:
        return Report("Capacity", "", "", (), ("skipped: no photos; give a folder of photos with --photos",))
    measured = _measure(config)
    findings = tuple(_row(plan(measured, images_per_hour)) for images_per_hour in IMAGES_PER_HOUR)
    return Report(
        "Capacity: the node pool for a number of images per hour",
        "images/s",
        "busy CPUs",
        findings,
        (
            f"Measured here: {measured.images_per_s:.1f} images/s in {measured.precision} on {measured.cpus} logical "
            f"CPUs, JPEG files of {JPEG_WIDTH} x {JPEG_HEIGHT}; {measured.explanations_per_s:.2f} photos/s explained "
            f"with {MAPS} projections each; {measured.server_mb:.0f} MB a server, "
            f"{measured.worker_mb:.0f} MB a worker;"
            f"{measured.bytes_per_image / 1e3:.1f} KB per image, request and answer together.",
            f"Planned for {UTILISATION:.0%} of that; {EXPLAINED_SHARE:.0%} of photos explained; "
            f"{CPUS_PER_REPLICA} CPUs per replica, {CPUS_PER_WORKER} per worker, {CPUS_PER_NODE} of a node's 16; "
            f"memory times {MEMORY_MARGIN:g}.",
        ),
        measured="a day",
        details=("replicas", "workers", "nodes", "memory", "network"),
    )


def _row(needed: Plan) -> Finding:
    return Finding(
        f"{needed.images_per_hour:,.0f} images/h",
        Quantity(needed.images_per_hour * 24 / 1e6, "million"),
        Quantity(needed.images_per_hour / 3600),
        Quantity(needed.cpus),
        None,
        (
            Quantity(needed.replicas),
            Quantity(needed.workers),
            Quantity(needed.nodes),
            Quantity(needed.memory_gb, "GB"),
            Quantity(needed.mbit_per_s, "Mbit/s"),
        ),
    )


def _measure(config: BenchmarkConfig) -> Measured:
    images = [pb.Image(encoded=file) for file in jpeg_files(config)]
    requests = [pb.ClassifyRequest(image=image).SerializeToString() for image in images]
    images_per_s = _classified_per_s(config, requests)
    folder = config.scratch("capacity-projections")
    with (
        running_service(config.bundle.folder, folder, "--threads", str(config.threads)) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        await_projection(channel)
        vision = VisionServiceStub(channel)
        answers = [vision.Classify(pb.ClassifyRequest(image=image), timeout=30) for image in images]
        explanations_per_s = _explained_per_s(config, vision, images)
        precision = vision.DescribeModel(pb.DescribeModelRequest(), timeout=30).engine.precision
        server_mb, worker_mb = resident_bytes(service.pid) / 1e6, resident_bytes(worker_pid(service)) / 1e6
    return Measured(
        precision,
        images_per_s,
        len(usable_cpus()),
        explanations_per_s,
        server_mb,
        worker_mb,
        statistics.mean(map(len, requests)) + statistics.mean(answer.ByteSize() for answer in answers),
    )


def _classified_per_s(config: BenchmarkConfig, requests: list[bytes]) -> float:
    cpus, effort = usable_cpus(), config.effort
    clients = CLIENTS_PER_REPLICA * len(cpus)
    folder = config.scratch("capacity-load")
    with (
        running_fleet(config, "capacity", cpus) as fleet,
        LoadGenerator(address_of(fleet), {Kind.JPEG: requests}, folder) as generator,
    ):
        order = generator.saturating_loop(Kind.JPEG, clients, effort.round_s)
        return statistics.median(generator.closed_loop(order).calls_per_s for _ in range(effort.rounds))


def _explained_per_s(config: BenchmarkConfig, vision: VisionServiceStub, images: list[pb.Image]) -> float:
    """Returns the rate of explained photos, one call at a time, as the worker computes them."""
    highest = [layer.name for layer in config.bundle.manifest.layers if layer.kind == "conv"][-1]
    took_s = []
    for _ in range(config.effort.tries):
        for image in images:
            began_s = time.perf_counter()
            for _ in vision.Project(pb.ProjectRequest(image=image, layer=highest, strongest=MAPS), timeout=60):
                pass
            took_s.append(time.perf_counter() - began_s)
    return 1 / statistics.median(took_s)
