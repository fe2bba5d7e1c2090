"""Capacity: what a node pool needs for so many images an hour, from what this machine does. docs/capacity.md explains
the formulas."""

import math
import statistics
import time
from dataclasses import dataclass

import grpc
from zfserve_cli.service_process import running_service
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub

from zfserve_bench.fleet.replicas import address_of, running_fleet
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import ClosedLoop, Kind
from zfserve_bench.reports.findings import Finding, Quantity, Report
from zfserve_bench.service.startup import await_projection, resident_bytes, worker_pid
from zfserve_bench.service.throughput import whole_bursts
from zfserve_bench.subject import HEIGHT, WIDTH, Subject, available, jpeg_files

IMAGES_PER_HOUR = (1_000, 100_000, 10_000_000)

UTILISATION = 0.6
"""Of what was measured, that is planned for: the rest is for uneven arrival, the start of new replicas and one that is
away."""

EXPLAINED = 0.01
"""Of all photos, those whose nine strongest projections are asked for as well."""

CPUS_A_REPLICA = 2
CPUS_A_WORKER = 2
"""As deploy/base asks for."""

FEWEST = 2
"""Replicas, and workers: one may be away."""

MEMORY_MARGIN = 1.5
"""Over what was resident: photos under way, and a new model version that is loaded beside the old one."""

CPUS_A_NODE = 15
"""Of a node with 16: one is for the node's own agents."""

CLIENTS_A_REPLICA = 16
MAPS = 9


@dataclass(frozen=True)
class Measured:
    """What one machine does.

    Attributes:
        precision: of the graph that was served.
        images_per_s: JPEG files classified by replicas with one CPU each on all of `cpus`.
        cpus: logical ones; two may be one core's.
        explanations_per_s: photos with their nine strongest projections, by one worker that has all of `cpus`.
        server_mb, worker_mb: resident.
        bytes_an_image: of a request and its answer.
    """

    precision: str
    images_per_s: float
    cpus: int
    explanations_per_s: float
    server_mb: float
    worker_mb: float
    bytes_an_image: float


@dataclass(frozen=True)
class Plan:
    """What is needed.

    Attributes:
        cpus: that classification keeps busy to `UTILISATION`, before they are rounded to replicas.
        replicas, workers: with `CPUS_A_REPLICA` and `CPUS_A_WORKER` each.
        memory_gb: of all of them.
        nodes: with `CPUS_A_NODE` to give away.
        mbit_per_s: to and from the clients.
    """

    images_per_hour: float
    cpus: float
    replicas: int
    workers: int
    memory_gb: float
    nodes: int
    mbit_per_s: float


def plan(measured: Measured, images_per_hour: float) -> Plan:
    per_s = images_per_hour / 3600
    cpus = per_s / (measured.images_per_s / measured.cpus * UTILISATION)
    replicas = max(FEWEST, math.ceil(cpus / CPUS_A_REPLICA))
    explained_by_one = measured.explanations_per_s * CPUS_A_WORKER / measured.cpus
    workers = max(FEWEST, math.ceil(per_s * EXPLAINED / (explained_by_one * UTILISATION)))
    memory_mb = (replicas * measured.server_mb + workers * measured.worker_mb) * MEMORY_MARGIN
    return Plan(
        images_per_hour,
        cpus,
        replicas,
        workers,
        memory_mb / 1e3,
        math.ceil((replicas * CPUS_A_REPLICA + workers * CPUS_A_WORKER) / CPUS_A_NODE),
        per_s * measured.bytes_an_image * 8 / 1e6,
    )


def measure_capacity(subject: Subject) -> Report:
    if not subject.photos:
        return Report("Capacity", "", "", (), ("skipped: no photos; give a folder of JPEG files with --photos",))
    measured = _measure(subject)
    findings = tuple(_row(plan(measured, images_per_hour)) for images_per_hour in IMAGES_PER_HOUR)
    return Report(
        "Capacity: what so many images an hour need",
        "images/s",
        "busy CPUs",
        findings,
        (
            f"Measured here: {measured.images_per_s:.1f} images/s in {measured.precision} on {measured.cpus} logical "
            f"CPUs, JPEG files of {WIDTH} x {HEIGHT}; {measured.explanations_per_s:.2f} photos/s explained with {MAPS} "
            f"projections each; {measured.server_mb:.0f} MB a server, {measured.worker_mb:.0f} MB a worker; "
            f"{measured.bytes_an_image / 1e3:.1f} KB an image, request and answer.",
            f"Planned for {UTILISATION:.0%} of that; {EXPLAINED:.0%} of photos explained; {CPUS_A_REPLICA} CPUs a "
            f"replica, {CPUS_A_WORKER} a worker, {CPUS_A_NODE} of a node's 16; memory times {MEMORY_MARGIN:g}.",
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


def _measure(subject: Subject) -> Measured:
    images = [pb.Image(encoded=file) for file in jpeg_files(subject)]
    requests = [pb.ClassifyRequest(image=image).SerializeToString() for image in images]
    images_per_s = _classified_per_s(subject, requests)
    folder = subject.scratch("capacity-projections")
    with (
        running_service(subject.bundle.folder, folder, "--threads", str(subject.threads)) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        await_projection(channel)
        vision = VisionServiceStub(channel)
        answers = [vision.Classify(pb.ClassifyRequest(image=image), timeout=30) for image in images]
        explanations_per_s = _explained_per_s(subject, vision, images)
        precision = vision.DescribeModel(pb.DescribeModelRequest(), timeout=30).engine.precision
        server_mb, worker_mb = resident_bytes(service.pid) / 1e6, resident_bytes(worker_pid(service)) / 1e6
    return Measured(
        precision,
        images_per_s,
        len(available()),
        explanations_per_s,
        server_mb,
        worker_mb,
        statistics.mean(map(len, requests)) + statistics.mean(answer.ByteSize() for answer in answers),
    )


def _classified_per_s(subject: Subject, requests: list[bytes]) -> float:
    cpus, effort = available(), subject.effort
    clients = CLIENTS_A_REPLICA * len(cpus)
    folder = subject.scratch("capacity-load")
    with (
        running_fleet(subject, "capacity", cpus) as fleet,
        LoadGenerator(address_of(fleet), {Kind.JPEG: requests}, folder) as generator,
    ):
        guess = generator.closed_loop(ClosedLoop(Kind.JPEG, clients, warm_up=clients, calls=clients)).calls_per_s
        order = ClosedLoop(Kind.JPEG, clients, warm_up=2 * clients, calls=whole_bursts(guess * effort.round_s))
        return statistics.median(generator.closed_loop(order).calls_per_s for _ in range(effort.rounds))


def _explained_per_s(subject: Subject, vision: VisionServiceStub, images: list[pb.Image]) -> float:
    """One at a time, as the worker computes them."""
    highest = [layer.name for layer in subject.bundle.manifest.layers if layer.kind == "conv"][-1]
    took_s = []
    for _ in range(subject.effort.tries):
        for image in images:
            began_s = time.perf_counter()
            for _ in vision.Project(pb.ProjectRequest(image=image, layer=highest, strongest=MAPS), timeout=60):
                pass
            took_s.append(time.perf_counter() - began_s)
    return 1 / statistics.median(took_s)
