"""Benchmark `soak`: makes calls of all kinds, good and bad, for a long time.

Memory, file descriptors and threads must not grow, and every call must end as expected.
"""

import csv
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path

import grpc
import numpy as np
from zfserve_cli.service_process import ServiceProcess, running_service
from zfserve_cli.top.metrics_text import Samples
from zfserve_cli.top.replicas import fetch_metrics

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.fleet.replicas import METRICS_TIMEOUT_S
from zfserve_bench.inputs import jpeg_files, jpeg_requests, projection_requests, random_images, raw_request
from zfserve_bench.load.generator import LoadGenerator
from zfserve_bench.load.protocol import Call, ClosedLoop, Kind, OpenLoop, tally
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report
from zfserve_bench.service.startup import await_projection, status_number, worker_pid

RATES = {
    Kind.RAW: 10.0,
    Kind.JPEG: 10.0,
    Kind.PROJECT: 0.5,
    Kind.DESCRIBE: 1.0,
    Kind.BAD_INPUT: 2.0,
    Kind.CANCELLED_CLASSIFY: 2.0,
    Kind.CANCELLED_PROJECT: 0.2,
    Kind.HEALTH_WATCH: 1.0,
}
"""The rates in calls per second. They are reduced if they exceed `SHARE_OF_CAPACITY`: leaks show without high load."""

SHARE_OF_CAPACITY = 0.3
PROBE = ClosedLoop(Kind.RAW, clients=8, warm_up=8, calls=64)

SAMPLE_S = 10.0
MIN_SAMPLES = 12

MAX_GROWTH = Limit("at most", 0.2)
"""The largest growth in MB per minute over the last half. 0.2 is about 120 bytes for each call."""

NO_MORE = Limit("at most", 0)
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Sample:
    """Holds the state of both processes at one moment.

    Attributes:
        elapsed_s: the time since the load began.
        server_mb, worker_mb: the memory by `anonymous_bytes`.
        server_files, worker_files: the numbers of open file descriptors.
        calls, unexpected: the number of calls that have ended so far, and of those with an unexpected status.
    """

    elapsed_s: float
    server_mb: float
    worker_mb: float
    server_files: int
    worker_files: int
    server_threads: int
    worker_threads: int
    queue_depth: float
    calls: int
    unexpected: int


def measure_soak(config: BenchmarkConfig) -> Report:
    if not config.photos:
        return Report("Soak", "", "", (), ("skipped: no photos; give a folder of photos with --photos",))
    folder = config.scratch("soak")
    with running_service(config.bundle.folder, folder, "--threads", str(config.threads)) as service:
        with grpc.insecure_channel(service.address) as channel:
            await_projection(channel)
        requests = _requests(config)
        rates = _rates(service, requests, folder)
        with LoadGenerator(service.address, requests, folder) as generator:
            generator.start(OpenLoop.steady(rates))
            every_s = min(SAMPLE_S, config.soak_s / MIN_SAMPLES)
            samples = list(_watch(service, generator.ended_calls, config.soak_s, every_s))
            records = generator.finish().calls
    if config.samples is not None:
        config.samples.write_text(to_csv(samples), encoding="utf-8")
    return Report(
        f"Soak: {config.soak_s / 60:g} minutes of {sum(rates.values()):.1f} calls per second of {len(rates)} kinds",
        "at the middle",
        "figure",
        tuple(make_findings(samples, records, config.effort.judged)),
        (*sparklines(samples), f"Calls: {tally(records)}."),
        measured="at the end",
    )


def _rates(service: ServiceProcess, requests: dict[Kind, list[bytes]], folder: Path) -> dict[Kind, float]:
    with LoadGenerator(service.address, requests, folder) as generator:
        share = SHARE_OF_CAPACITY * generator.closed_loop(PROBE).calls_per_s / (RATES[Kind.RAW] + RATES[Kind.JPEG])
    return {kind: per_s * min(1.0, share) for kind, per_s in RATES.items()}


def _requests(config: BenchmarkConfig) -> dict[Kind, list[bytes]]:
    files = jpeg_files(config)
    return {
        Kind.RAW: [raw_request(image) for image in random_images(config.bundle.manifest.input)],
        Kind.JPEG: jpeg_requests(files),
        Kind.PROJECT: projection_requests(config, files),
        # Files that end before the size of the photo.
        Kind.BAD_INPUT: jpeg_requests(file[:100] for file in files),
    }


def _watch(
    service: ServiceProcess, records: Callable[[], Sequence[Call]], seconds: float, every_s: float
) -> Iterator[Sample]:
    worker = worker_pid(service)
    began_s = time.monotonic()
    due_s = began_s
    while (due_s := due_s + every_s) <= began_s + seconds + every_s / 2:
        time.sleep(max(0.0, due_s - time.monotonic()))
        ended = records()
        shown = fetch_metrics(service.metrics_address, METRICS_TIMEOUT_S)
        yield Sample(
            time.monotonic() - began_s,
            anonymous_bytes(service.pid) / 1e6,
            anonymous_bytes(worker) / 1e6,
            open_files(service.pid),
            open_files(worker),
            threads(service.pid),
            threads(worker),
            queue_depth(shown),
            len(ended),
            sum(not one.as_expected for one in ended),
        )


def anonymous_bytes(pid: int) -> int:
    """Returns the bytes of memory without a backing file, in RAM or swapped out.

    Resident memory would also change when the kernel drops and reloads pages of libraries and weights.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * (status_number(status, "RssAnon") + status_number(status, "VmSwap"))


def open_files(pid: int) -> int:
    """Returns the number of open file descriptors."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def threads(pid: int) -> int:
    """Returns the number of threads."""
    return status_number(Path(f"/proc/{pid}/status").read_text(), "Threads")


def queue_depth(shown: Samples) -> float:
    """Returns the queue depth of all models together."""
    return sum(value for series, value in shown.items() if series.name == "zfserve_queue_depth")


def make_findings(samples: Sequence[Sample], records: Sequence[Call], judged: bool) -> list[Finding]:
    """Returns the findings. They are judged over the last half of the time."""
    half = samples[len(samples) // 2 :]
    findings = []
    for name, seen in (
        ("memory, server", [sample.server_mb for sample in half]),
        ("memory, worker", [sample.worker_mb for sample in half]),
    ):
        growth = slope([sample.elapsed_s / 60 for sample in half], seen)
        growing = Quantity(growth, "MB/min")
        limit = MAX_GROWTH if judged else None
        findings.append(Finding(name, Quantity(seen[-1], "MB"), Quantity(seen[0], "MB"), growing, limit))
    for name, column in (
        ("open files, server", "server_files"),
        ("open files, worker", "worker_files"),
        ("threads, server", "server_threads"),
        ("threads, worker", "worker_threads"),
    ):
        fewest = [min(getattr(sample, column) for sample in part) for part in _parts(samples)]
        more, limit = Quantity(fewest[1] - fewest[0]), NO_MORE if judged else None
        findings.append(Finding(f"{name}, fewest", Quantity(fewest[1]), Quantity(fewest[0]), more, limit))
    unexpected = Quantity(sum(not one.as_expected for one in records))
    findings.append(Finding("calls that ended wrongly", unexpected, None, unexpected, NO_MORE if judged else None))
    deepest = Quantity(max(sample.queue_depth for sample in samples))
    findings.append(Finding("queue, largest depth", deepest, None, deepest))
    return findings


def _parts(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Returns the samples of the second quarter, when everything has been used once, and those of the last half.

    Connections come and go, so the minima of both parts are compared. A leak raises the minimum too.
    """
    quarter = len(samples) // 4
    return samples[quarter : 2 * quarter], samples[2 * quarter :]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Returns the slope of a line through the points: the median slope between all pairs (Theil and Sen).

    Unlike least squares, it ignores a single step, such as an allocator takes at a new peak.
    """
    return statistics.median((y - v) / (x - u) for (u, v), (x, y) in combinations(zip(xs, ys, strict=True), 2))


def sparklines(samples: Sequence[Sample]) -> list[str]:
    """Returns a line for each process that draws its memory over time."""
    lines = []
    for name, seen in (("server", [one.server_mb for one in samples]), ("worker", [one.worker_mb for one in samples])):
        lines.append(f"Memory of the {name}, {min(seen):.0f} to {max(seen):.0f} MB: {sparkline(seen)}")
    return lines


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Returns a bar for each value, scaled from the least to the greatest. More than `width` values are averaged."""
    parts = np.array_split(np.asarray(values, float), min(width, len(values)))
    means = [float(part.mean()) for part in parts]
    least, most = min(means), max(means)
    step = (most - least) / len(BARS) or 1.0
    return "".join(BARS[min(int((mean - least) / step), len(BARS) - 1)] for mean in means)


def to_csv(samples: Sequence[Sample]) -> str:
    """Returns the samples as CSV with a header."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Sample)], lineterminator="\n")
    table.writeheader()
    table.writerows({name: round(value, 2) for name, value in asdict(sample).items()} for sample in samples)
    return text.getvalue()
