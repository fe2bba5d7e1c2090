"""A rolling restart of the workers under load: those that one server spreads its projections over are stopped and
started one after the other, and no projection may fail."""

import grpc
from zfserve_cli.service_process import running_service

from zfserve_bench.fleet.replicas import address_of, running_workers
from zfserve_bench.fleet.rolling import describe, earlier_attempts, find, restart_in_turn
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import Kind, OpenLoop, tally
from zfserve_bench.reports.findings import Report
from zfserve_bench.service.startup import await_projection
from zfserve_bench.subject import Subject, available, jpeg_files, projection_requests

WORKERS = 2
"""The fewest that a Deployment of the manifests has."""

PER_S = 6.0
"""Projections of the two strongest maps of the highest layer: some 50 ms of a worker each."""


def measure_rolling_workers(subject: Subject, count: int = WORKERS, per_s: float = PER_S) -> Report:
    if not subject.photos:
        return Report("Rolling restart of workers", "", "", (), ("skipped: no photos; give a folder with --photos",))
    folder = subject.scratch("rolling-workers-load")
    cpus = available()
    with running_workers(subject, "rolling-worker", [cpus[at % len(cpus)] for at in range(count)]) as workers:
        flags = ("--worker-address", f"ipv4:{address_of(workers)}", "--threads", "1", "--log-format", "json")
        with running_service(subject.bundle.folder, subject.scratch("rolling-workers-server"), *flags) as service:
            with grpc.insecure_channel(service.address) as channel:
                await_projection(channel)
            requests = {Kind.PROJECT: projection_requests(subject, jpeg_files(subject))}
            with LoadGenerator(service.address, requests, folder) as generator:
                generator.start(OpenLoop.steady({Kind.PROJECT: per_s}))
                restarts = restart_in_turn(workers, subject.effort)
                records = generator.finish().calls
            again = earlier_attempts(service.log.read_text())
    return describe(
        f"Rolling restart of workers: {count} workers of one server, {per_s:g} projections a second",
        find(records, restarts, again, subject.effort.judged),
        f"{len(restarts)} restarts, one worker at a time: SIGTERM, drain, and a new process on the same port. The next "
        "one waits until this one is called again.",
        f"Calls: {tally(records)}.",
        "Tried again: calls that the server saw for a second time, by the client's retry policy.",
    )
