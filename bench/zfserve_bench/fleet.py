"""Several replicas of the service on this machine, each a process on CPUs of its own, behind one list of addresses."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from zfserve_client.metrics_text import Series
from zfserve_client.replicas import fetch
from zfserve_client.service_process import ServiceProcess, running_service

from zfserve_bench.load import METHOD
from zfserve_bench.subject import Subject

LOOK_S = 10.0
"""The longest that a replica's metrics may take."""

ANSWERED = Series("zfserve_requests_total", frozenset({("method", METHOD), ("status", "OK")}))


class Replica:
    """One `zfserve serve` with a single thread and without a worker. Stopped and started again, it keeps its port.

    Args:
        name: unique in this run of the benchmarks; of the folders of its logs.
    """

    def __init__(self, subject: Subject, name: str, cpu: int, *flags: str) -> None:
        self._subject = subject
        self._name = name
        self._cpu = cpu
        self._flags = (*flags, "--no-worker", "--engine", "onnx-cpu", "--threads", "1")
        self._running = ExitStack()
        self._port = "0"
        self.starts: list[ServiceProcess] = []

    @property
    def address(self) -> str:
        return self.starts[-1].address

    def start(self) -> None:
        """Raises ServiceFailed where it does not get ready."""
        folder = self._subject.scratch(f"{self._name}-{len(self.starts)}")
        flags = (*self._flags, "--port", self._port)
        service = running_service(self._subject.bundle.folder, folder, *flags, cpus=[self._cpu])
        self.starts.append(self._running.enter_context(service))
        self._port = self.address.rpartition(":")[2]

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended."""
        self._running.close()

    def answered(self) -> float:
        """Classify calls that it answered since it started, by its own metrics."""
        return fetch(self.starts[-1].metrics_address, LOOK_S).get(ANSWERED, 0.0)


@contextmanager
def running_fleet(subject: Subject, name: str, cpus: Sequence[int], *flags: str) -> Iterator[list[Replica]]:
    """One replica for each of `cpus`, which may name a CPU twice; all are stopped when the block ends."""
    replicas = [Replica(subject, f"{name}-{number}", cpu, *flags) for number, cpu in enumerate(cpus)]
    with ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.stop)
            replica.start()
        yield replicas


def address_of(replicas: Sequence[Replica]) -> str:
    """All of them, as a client is told."""
    return ",".join(replica.address for replica in replicas)
