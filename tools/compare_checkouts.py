"""Compares the cost of a `Classify` in several checkouts of zfserve: their services run side by side and take turns.

    python -m tools.compare_checkouts models/zfnet /path/to/old /path/to/new /path/to/old

Name one checkout twice: the difference between its two services is the noise of the machine. A bundle with a small
network shows the cost of the service alone. Prints, for each service, the CPU time of a call under 16 callers, the
latency of a lone call, and the differences from the first one (mean and standard error over the rounds). Linux only.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
from zfserve_protos.v1 import zfserve_pb2 as pb

CLASSIFY = "/zfserve.v1.VisionService/Classify"
CALLERS, CALLS, LONE_CALLS = 16, 1600, 150
START_TIMEOUT_S = 120.0

Call = Callable[[bytes], Awaitable[bytes]]


class Service(NamedTuple):
    """A running service of one checkout."""

    checkout: Path
    pid: int
    port: int


@contextmanager
def running(checkout: Path, bundle: Path, folder: Path) -> Iterator[Service]:
    """Runs the service of a checkout on ONNX Runtime with one thread, until the block ends."""
    ready = folder / "ready.json"
    packages = [str(part.parent) for part in checkout.glob("*/zfserve*") if part.is_dir()]
    # Checkouts before the command line had a room of its own start differently.
    program = "zfserve_cli.main" if (checkout / "cli").exists() else "zfserve_client.cli"
    flags = ("--engine", "onnx-cpu", "--threads", "1", "--port", "0", "--metrics-port", "0", "--no-worker")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", program, "serve", "--model", bundle.resolve(), *flags, "--ready-file", ready],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(packages)},
            stderr=log,
            cwd=folder,
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"the service of {checkout} did not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        yield Service(checkout, process.pid, json.loads(ready.read_text())["port"])
    finally:
        process.terminate()
        process.wait()


def cpu_ms(pid: int) -> float:
    """Returns the CPU time of a process so far, in milliseconds."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) * 1e3 / os.sysconf("SC_CLK_TCK")


async def call_together(call: Call, request: bytes) -> None:
    """Makes `CALLS` calls by `CALLERS` callers."""

    async def call_in_turn() -> None:
        for _ in range(CALLS // CALLERS):
            await call(request)

    await asyncio.gather(*(call_in_turn() for _ in range(CALLERS)))


async def lone_latency_ms(call: Call, request: bytes) -> float:
    """Returns the median latency of one caller, in milliseconds."""
    latencies_ms = []
    for _ in range(LONE_CALLS):
        began = time.perf_counter()
        await call(request)
        latencies_ms.append((time.perf_counter() - began) * 1e3)
    return statistics.median(latencies_ms)


async def measure(services: Sequence[Service], request: bytes, rounds: int) -> list[list[tuple[float, float]]]:
    """Returns, for each service, the CPU time of a call and the latency of a lone call in each round, both in ms."""
    figures: list[list[tuple[float, float]]] = [[] for _ in services]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") for service in services]
    calls: list[Any] = [channel.unary_unary(CLASSIFY) for channel in channels]
    for call in calls:
        await call_together(call, request)  # warm-up
    for turn in range(rounds):
        for at in range(len(services)):
            index = (at + turn) % len(services)
            before_ms = cpu_ms(services[index].pid)
            await call_together(calls[index], request)
            cost_ms = (cpu_ms(services[index].pid) - before_ms) / CALLS
            figures[index].append((cost_ms, await lone_latency_ms(calls[index], request)))
    for channel in channels:
        await channel.close()
    return figures


def describe(figures: Sequence[float], reference: Sequence[float]) -> str:
    """Returns the median of the figures, and the mean difference from the reference with its standard error."""
    differences = [figure - other for figure, other in zip(figures, reference, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.median(figures):.3f} ({statistics.mean(differences):+.3f} ± {error:.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare_checkouts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("bundle", type=Path, help="folder of a bundle that all checkouts can read")
    parser.add_argument("checkouts", type=Path, nargs="+", help="folders of checkouts; the first one is the reference")
    parser.add_argument("--rounds", type=int, default=12, help="rounds, at least 2 (default: %(default)s)")
    arguments = parser.parse_args()
    size = json.loads((arguments.bundle / "manifest.json").read_text())["input"]
    pixels = np.random.default_rng(0).integers(0, 256, (size["height"], size["width"], 3), np.uint8)
    raw = pb.RawPixels(width=size["width"], height=size["height"], data=pixels.tobytes())
    request = pb.ClassifyRequest(image=pb.Image(raw=raw)).SerializeToString()
    with ExitStack() as stack:
        services = []
        for checkout in arguments.checkouts:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zfserve-compare-")))
            services.append(stack.enter_context(running(checkout.resolve(), arguments.bundle, folder)))
        figures = asyncio.run(measure(services, request, max(2, arguments.rounds)))
    reference_cpu, reference_latency = zip(*figures[0], strict=True)
    sys.stdout.write("| checkout | CPU ms of a call, 16 callers | latency of a lone call, ms |\n|---|---|---|\n")
    for service, each in zip(services, figures, strict=True):
        cost, latency = zip(*each, strict=True)
        sys.stdout.write(
            f"| {service.checkout} | {describe(cost, reference_cpu)} | {describe(latency, reference_latency)} |\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
