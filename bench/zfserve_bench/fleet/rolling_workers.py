"""Benchmark `rolling-workers`: restarts the workers of one server one after the other under load.

No projection may fail.
"""

import grpc
from zfserve_cli.service_process import running_service

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.fleet.replicas import address_of, running_workers
from zfserve_bench.fleet.rolling import count_retries, describe, make_findings, restart_in_turn
from zfserve_bench.inputs import jpeg_files, projection_requests
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import Kind, OpenLoop, tally
from zfserve_bench.reports.findings import Report
from zfserve_bench.service.startup import await_projection
from zfserve_bench.services import usable_cpus

WORKERS = 2
"""The smallest number in the Kubernetes manifests."""

PER_S = 6.0
"""Calls per second. Each projects the two strongest maps of the highest layer, which takes about 50 ms of a worker."""


def measure_rolling_workers(config: BenchmarkConfig, count: int = WORKERS, per_s: float = PER_S) -> Report:
    if not config.photos:
        return Report("Rolling restart of workers", "", "", (), ("skipped: no photos; give a folder with --photos",))
    folder = config.scratch("rolling-workers-load")
    cpus = usable_cpus()
    with running_workers(config, "rolling-worker", [cpus[at % len(cpus)] for at in range(count)]) as workers:
        flags = ("--worker-address", f"ipv4:{address_of(workers)}", "--threads", "1", "--log-format", "json")
        with running_service(config.bundle.folder, config.scratch("rolling-workers-server"), *flags) as service:
            with grpc.insecure_channel(service.address) as channel:
                await_projection(channel)
            requests = {Kind.PROJECT: projection_requests(config, jpeg_files(config))}
            with LoadGenerator(service.address, requests, folder) as generator:
                generator.start(OpenLoop.steady({Kind.PROJECT: per_s}))
                restarts = restart_in_turn(workers, config.effort)
                records = generator.finish().calls
            again = count_retries(service.log.read_text())
    return describe(
        f"Rolling restart of workers: {count} workers of one server, {per_s:g} projections per second",
        make_findings(records, restarts, again, config.effort.judged),
        f"{len(restarts)} restarts, one worker at a time: SIGTERM, drain, and a new process on the same port. The next "
        "restart waits until the server has called the new process.",
        f"Calls: {tally(records)}.",
        "Tried again: calls that the server saw more than once, because the client's policy retried them.",
    )
