"""Runs several replicas of the service or of its worker on this machine, each as a process on its own CPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TypeAlias

from zfserve_cli.service_process import ServiceProcess, running_service
from zfserve_cli.top.metrics_text import Series
from zfserve_cli.top.replicas import fetch_metrics
from zfserve_protos.methods import CLASSIFY, WORKER_PROJECT

from zfserve_bench.config import BenchmarkConfig
from zfserve_bench.fleet.worker_service import running_worker

METRICS_TIMEOUT_S = 10.0
"""The longest time that a replica may take to answer with its metrics."""

Start: TypeAlias = Callable[[str, str], AbstractContextManager[ServiceProcess]]
"""Starts the process, given the name of a new folder and a port. The port "0" stands for a free one."""


class Replica:
    """Runs a replica. It keeps its port when it is stopped and started again.

    Args:
        name: the prefix of the names of its log folders, unique in this run of the benchmarks.
        start: starts the process.
        method: the full name of the gRPC method whose calls `answered` counts.

    Attributes:
        starts: the processes so far, the running one last.
    """

    def __init__(self, name: str, start: Start, method: str) -> None:
        self._name = name
        self._start = start
        self._answered = Series("zfserve_requests_total", frozenset({("method", method), ("status", "OK")}))
        self._running = ExitStack()
        self._port = "0"
        self.starts: list[ServiceProcess] = []

    @property
    def address(self) -> str:
        return self.starts[-1].address

    def start(self) -> None:
        """Starts the process and waits until it is ready. Raises ServiceFailed if it does not become ready."""
        process = self._start(f"{self._name}-{len(self.starts)}", self._port)
        self.starts.append(self._running.enter_context(process))
        self._port = self.address.rpartition(":")[2]

    def stop(self) -> None:
        """Sends SIGTERM and waits until the process has ended."""
        self._running.close()

    def answered(self) -> float:
        """Returns the number of calls that the running process has answered with OK, by its own metrics."""
        return fetch_metrics(self.starts[-1].metrics_address, METRICS_TIMEOUT_S).get(self._answered, 0.0)


@contextmanager
def running_fleet(config: BenchmarkConfig, name: str, cpus: Sequence[int], *flags: str) -> Iterator[list[Replica]]:
    """Runs `zfserve serve` with one thread and without a worker on each CPU, until the block ends.

    Args:
        name: the prefix of the replicas' names.
        cpus: the CPU of each replica. A CPU may occur more than once.
        flags: further flags of `zfserve serve`.
    """
    flags = (*flags, "--no-worker", "--engine", "onnx-cpu", "--threads", "1")

    def start(cpu: int, folder: str, port: str) -> AbstractContextManager[ServiceProcess]:
        return running_service(config.bundle.folder, config.scratch(folder), *flags, "--port", port, cpus=[cpu])

    with _started([Replica(f"{name}-{at}", partial(start, cpu), CLASSIFY) for at, cpu in enumerate(cpus)]) as replicas:
        yield replicas


@contextmanager
def running_workers(config: BenchmarkConfig, name: str, cpus: Sequence[int]) -> Iterator[list[Replica]]:
    """Runs `zfserve worker` with one thread on each of `cpus`, until the block ends."""

    def start(cpu: int, folder: str, port: str) -> AbstractContextManager[ServiceProcess]:
        return running_worker(config.bundle.folder, config.scratch(folder), port, "--threads", "1", cpus=[cpu])

    with _started(
        [Replica(f"{name}-{at}", partial(start, cpu), WORKER_PROJECT) for at, cpu in enumerate(cpus)]
    ) as workers:
        yield workers


@contextmanager
def _started(replicas: list[Replica]) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.stop)
            replica.start()
        yield replicas


def address_of(replicas: Sequence[Replica]) -> str:
    """Returns the address of all replicas together, as a client takes it."""
    return ",".join(replica.address for replica in replicas)
