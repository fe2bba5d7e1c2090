"""Benchmark `drain`: stops a service under load many times. The service must answer all calls that it accepted.

The callers call without retries until the process is gone. A call is lost if the service logged it and its caller
got no answer from the service itself. Calls that never reached the service are counted separately.
"""

import asyncio
import enum
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_cli.service_process import running_service
from zfserve_protos.metadata import REQUEST_ID_KEY, STATUS_DETAILS_KEY
from zfserve_protos.methods import CLASSIFY

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.inputs import random_images, raw_request
from zfserve_bench.load.closed_loop import UnaryCall
from zfserve_bench.reports.findings import Finding, Limit, Quantity, Report

CALLERS = 16
GRACE_S = 30.0


class Outcome(enum.Enum):
    """Lists the ways in which a call can end, as its caller sees it."""

    ANSWERED = enum.auto()
    REFUSED = enum.auto()  # the service refused the call
    UNAVAILABLE = enum.auto()  # gRPC ended the call
    CANCELLED = enum.auto()  # gRPC ended the call


@dataclass
class Drain:
    """Describes one stop under load.

    Attributes:
        outcomes: the outcome of each call by request id.
        seconds: the time from SIGTERM to the end of the process.
        status: its exit status.
        not_serving_s: the time from SIGTERM until health reported NOT_SERVING; None if nobody watched health.
        refused_s: the time from SIGTERM until the first call was not answered; None if all were answered.
        lost: the request ids of calls that the service logged and did not answer.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    status: int = -1
    not_serving_s: float | None = None
    refused_s: float | None = None
    lost: list[str] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        return Counter(self.outcomes.values())[outcome]


def measure_drain(config: BenchmarkConfig) -> Report:
    requests = [raw_request(image) for image in random_images(config.bundle.manifest.input)]
    flags = ("--engine", "onnx-cpu", "--precision", config.precisions[-1], "--threads", str(config.threads))
    drains = [
        drain_once(config.bundle.folder, config.scratch(f"drain-{number}"), requests, bool(number % 2), *flags)
        for number in range(config.repeats)
    ]
    return report(drains, judged=config.effort.judged)


def report(drains: Sequence[Drain], judged: bool = True) -> Report:
    def finding(name: str, quantity: Quantity, bound: float | None = None) -> Finding:
        return Finding(name, quantity, None, quantity, None if bound is None or not judged else Limit("at most", bound))

    def total(outcome: Outcome) -> Quantity:
        return Quantity(sum(drain.count(outcome) for drain in drains), "calls")

    findings = (
        finding("accepted but not answered", Quantity(sum(len(drain.lost) for drain in drains), "calls"), 0),
        finding("slowest stop", Quantity(max(drain.seconds for drain in drains), "s"), GRACE_S),
        finding("exit status other than 0", Quantity(sum(drain.status != 0 for drain in drains)), 0),
        finding("refused before health said NOT_SERVING", Quantity(sum(_refused_early(drain) for drain in drains)), 0),
        finding("answered", total(Outcome.ANSWERED)),
        finding("refused by the service, UNAVAILABLE", total(Outcome.REFUSED)),
        finding("refused by gRPC, UNAVAILABLE", total(Outcome.UNAVAILABLE)),
        finding("refused by gRPC, CANCELLED", total(Outcome.CANCELLED)),
    )
    return Report(
        f"Drain: SIGTERM under the load of {CALLERS} callers without retries, {len(drains)} times",
        "",
        "figure",
        findings,
        ("Every other time nobody watches health, so the service does not wait for clients to leave.",),
    )


def _refused_early(drain: Drain) -> bool:
    return drain.not_serving_s is not None and drain.refused_s is not None and drain.refused_s < drain.not_serving_s


def drain_once(model: Path, folder: Path, requests: Sequence[bytes], watched: bool, *flags: str) -> Drain:
    """Starts a service, stops it under load, and compares its log with what its callers received.

    Args:
        model: the folder of the bundle.
        folder: the folder of the log.
        requests: serialised `ClassifyRequest`s.
        watched: True if a client watches the service's health.
        flags: further flags of `zfserve serve`.
    """
    plain = ("--no-worker", "--log-format", "json", "--drain-grace", str(GRACE_S))
    with running_service(model, folder, *plain, *flags) as service:
        drain = asyncio.run(_stop_under_load(service.address, service.pid, requests, watched))
    by_service = (Outcome.ANSWERED, Outcome.REFUSED)
    drain.lost = [name for name in _logged_calls(folder / "service.log") if drain.outcomes.get(name) not in by_service]
    return drain


async def _stop_under_load(address: str, pid: int, requests: Sequence[bytes], watched: bool) -> Drain:
    drain = Drain()
    answered = asyncio.Semaphore(0)
    ended = asyncio.ensure_future(asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT))
    stopped_s = float("inf")

    async def caller(number: int) -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        options += [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 50)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            classify: UnaryCall = channel.unary_unary(CLASSIFY)
            for turn in range(1_000_000):
                name = f"{number}-{turn}"
                try:
                    await classify(requests[turn % len(requests)], metadata=((REQUEST_ID_KEY, name),))
                    drain.outcomes[name] = Outcome.ANSWERED
                    answered.release()
                except grpc.aio.AioRpcError as error:
                    drain.outcomes[name] = _outcome(error)
                    if drain.refused_s is None:
                        drain.refused_s = time.monotonic() - stopped_s
                    await asyncio.sleep(0.05)

    async def watcher() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            async for health in watch:
                if health.status == health_pb2.HealthCheckResponse.SERVING:
                    answered.release()
                    continue
                drain.not_serving_s = time.monotonic() - stopped_s
                return

    tasks = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
    watching = asyncio.create_task(watcher()) if watched else None
    for _ in range(random.randint(CALLERS, 4 * CALLERS)):
        await answered.acquire()
    stopped_s = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    result = await ended
    drain.seconds = time.monotonic() - stopped_s
    drain.status = -1 if result is None else result.si_status
    if watching is not None:
        await watching
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):  # a task that was only cancelled ends with CancelledError
            raise end
    return drain


def _outcome(error: grpc.aio.AioRpcError) -> Outcome:
    if STATUS_DETAILS_KEY in dict(error.trailing_metadata() or ()):
        return Outcome.REFUSED
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return Outcome[error.code().name]
    raise error


def _logged_calls(log: Path) -> Iterator[str]:
    """Yields the request ids of all calls that a handler received and ended, whatever their status."""
    for line in log.read_text().splitlines():
        if not line.startswith("{"):
            continue  # the greeting
        record = json.loads(line)
        if record.get("method") == CLASSIFY:
            yield record["request_id"]
