"""Several replicas of the service or of its worker on this machine, each a process on a CPU of its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TypeAlias

from zfserve_cli.service_process import ServiceProcess, running_service
from zfserve_cli.top.metrics_text import Series
from zfserve_cli.top.replicas import fetch_metrics
from zfserve_protos.methods import CLASSIFY, WORKER_PROJECT

from zfserve_bench.fleet.worker_process import running_worker
from zfserve_bench.subject import Subject

LOOK_S = 10.0
"""The longest that a replica's metrics may take."""

Starting: TypeAlias = Callable[[str, str], AbstractContextManager[ServiceProcess]]
"""Given the name of a new folder and a port, "0" for a free one."""


class Replica:
    """A process that keeps its port when it is stopped and started again.

    Args:
        name: unique in this run of the benchmarks; of the folders of its logs.
        starting: how it is started.
        method: whose calls `answered` counts.
    """

    def __init__(self, name: str, starting: Starting, method: str) -> None:
        self._name = name
        self._starting = starting
        self._answered = Series("zfserve_requests_total", frozenset({("method", method), ("status", "OK")}))
        self._running = ExitStack()
        self._port = "0"
        self.starts: list[ServiceProcess] = []

    @property
    def address(self) -> str:
        return self.starts[-1].address

    def start(self) -> None:
        """Raises ServiceFailed where it does not get ready."""
        starting = self._starting(f"{self._name}-{len(self.starts)}", self._port)
        self.starts.append(self._running.enter_context(starting))
        self._port = self.address.rpartition(":")[2]

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended."""
        self._running.close()

    def answered(self) -> float:
        """Calls that it answered since it started, by its own metrics."""
        return fetch_metrics(self.starts[-1].metrics_address, LOOK_S).get(self._answered, 0.0)


@contextmanager
def running_fleet(subject: Subject, name: str, cpus: Sequence[int], *flags: str) -> Iterator[list[Replica]]:
    """For each of `cpus`, which may name a CPU twice, one `zfserve serve` with a single thread and without a worker;
    all are stopped when the block ends."""
    flags = (*flags, "--no-worker", "--engine", "onnx-cpu", "--threads", "1")

    def start(cpu: int, folder: str, port: str) -> AbstractContextManager[ServiceProcess]:
        return running_service(subject.bundle.folder, subject.scratch(folder), *flags, "--port", port, cpus=[cpu])

    with _started([Replica(f"{name}-{at}", partial(start, cpu), CLASSIFY) for at, cpu in enumerate(cpus)]) as replicas:
        yield replicas


@contextmanager
def running_workers(subject: Subject, name: str, cpus: Sequence[int]) -> Iterator[list[Replica]]:
    """The same of workers with a single thread."""

    def start(cpu: int, folder: str, port: str) -> AbstractContextManager[ServiceProcess]:
        return running_worker(subject.bundle.folder, subject.scratch(folder), port, "--threads", "1", cpus=[cpu])

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
    """All of them, as a client is told."""
    return ",".join(replica.address for replica in replicas)
