"""Tests the client of the worker alone. `test_projection` tests it through the whole service."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.serving import FINGERPRINT, FakeWorker
from grpc_health.v1 import health_pb2
from zfserve_protos.methods import WORKER_SERVICE
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.errors import DeadlineExceeded, WorkerMismatch, WorkerUnavailable
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.health import SERVER, Health
from zfserve_runtime.grpc.options import server_options, worker_channel_options
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.worker.client import WorkerClient, WorkerIntervals

REQUEST = worker_pb2.ProjectRequest(fingerprint=FINGERPRINT, layer="conv1", strongest=1)


@asynccontextmanager
async def watching_client(
    target: str, served: Collection[str] = (), **options: Any
) -> AsyncIterator[tuple[WorkerClient, asyncio.Queue[bool]]]:
    """Yields a client that watches the workers at `target`, and a queue of the calls of its `on_change`.

    Args:
        served: the fingerprints that the client announces.
    """
    changes = asyncio.Queue[bool]()
    async with grpc.aio.insecure_channel(target, worker_channel_options()) as channel:
        client = WorkerClient(channel, Metrics(), on_change=changes.put_nowait, **{"max_call_s": 60.0, **options})
        await client.announce(served)
        watching = asyncio.create_task(client.watch())
        try:
            yield client, changes
        finally:
            watching.cancel()


async def ranks(client: WorkerClient) -> list[int]:
    """Asks for one projection, and returns the ranks of the answers."""
    return [answer.rank async for answer in client.project(REQUEST, Deadline())]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/worker.sock"


async def test_a_call_to_a_worker_that_never_answers_ends_even_without_a_deadline(address: str) -> None:
    worker = FakeWorker(hangs_after=0)
    async with worker.listening(address), watching_client(address, max_call_s=0.1) as (client, changes):
        with pytest.raises(WorkerUnavailable):  # not paired yet
            await ranks(client)
        assert await changes.get()
        assert client.ready
        with pytest.raises(DeadlineExceeded):
            await ranks(client)
        await worker.cancelled.wait()


@dataclass
class SlowWorker(FakeWorker):
    """Answers Describe only once `may_describe` is set."""

    may_describe: asyncio.Event = field(default_factory=asyncio.Event)

    async def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> worker_pb2.DescribeResponse:
        self.asked.set()
        await self.may_describe.wait()
        return await super().Describe(request, context)


async def test_a_network_that_is_announced_during_a_describe_is_asked_for_too(address: str) -> None:
    worker = SlowWorker(fingerprint=None)
    async with worker.listening(address), watching_client(address) as (client, changes):
        await worker.asked.wait()
        await client.announce([FINGERPRINT])
        worker.may_describe.set()
        assert await changes.get()
        assert client.holds(FINGERPRINT)


async def test_a_describe_answered_by_a_stopping_worker_does_not_make_it_ready(address: str) -> None:
    worker = SlowWorker()
    worker.may_describe.set()
    async with worker.listening(address), watching_client(address) as (client, changes):
        assert await changes.get()
        worker.may_describe.clear()
        worker.asked.clear()
        announcing = asyncio.create_task(client.announce([FINGERPRINT]))
        await worker.asked.wait()
        worker.health.not_serving(WORKER_SERVICE)
        assert not await changes.get()
        worker.may_describe.set()
        await announcing
        assert not client.ready
        assert not client.holds(FINGERPRINT)


async def test_a_worker_that_lacks_weights_is_asked_again_until_it_has_them(address: str) -> None:
    worker, often = FakeWorker(fingerprint="e" * 64), WorkerIntervals(describe_s=0.01)
    async with worker.listening(address), watching_client(address, [FINGERPRINT], intervals=often) as (_, changes):
        assert not await changes.get()
        worker.fingerprint = FINGERPRINT
        assert await changes.get()


async def test_health_is_watched_over_a_new_connection_and_the_worker_stays_ready() -> None:
    worker, health = FakeWorker(), RecordingHealth(SERVER, WORKER_SERVICE)
    worker.health = health
    aged = server_options(max_connection_age_s=0.1)
    async with (
        worker.listening("127.0.0.1:0", options=aged) as port,
        watching_client(f"127.0.0.1:{port}") as (client, changes),
    ):
        assert await changes.get()
        await health.third.wait()
        assert changes.empty()
        assert client.ready
        assert len(set(health.peers)) > 1


class RecordingHealth(Health):
    """Records the peer of each Watch call. Sets `third` at the third call."""

    def __init__(self, *services: str) -> None:
        super().__init__(*services)
        self.peers: list[str] = []
        self.third = asyncio.Event()

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        self.peers.append(context.peer())
        if len(self.peers) == 3:
            self.third.set()
        async for message in super().Watch(request, context):
            yield message


async def test_all_workers_of_an_address_are_asked() -> None:
    one, other = FakeWorker(), FakeWorker()
    async with (
        one.listening("127.0.0.1:0") as port,
        other.listening("127.0.0.1:0") as other_port,
        watching_client(f"ipv4:127.0.0.1:{port},127.0.0.1:{other_port}") as (client, changes),
    ):
        assert await changes.get()
        for _ in range(1000):  # the first worker may answer some calls before the second connection is open
            assert await ranks(client) == [0]
            if one.asked.is_set() and other.asked.is_set():
                break
        assert one.asked.is_set()
        assert other.asked.is_set()


async def test_workers_that_are_restarted_in_turn_fail_no_projection() -> None:
    async with AsyncExitStack() as one, AsyncExitStack() as other:
        ports = [
            await each.enter_async_context(FakeWorker().listening("127.0.0.1:0", drain_delay_s=0.5))
            for each in (one, other)
        ]
        async with watching_client(f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}") as (client, changes):
            assert await changes.get()
            answered, over = 0, asyncio.Event()

            async def caller() -> None:
                nonlocal answered
                while not over.is_set():
                    assert await ranks(client) == [0]
                    answered += 1
                    await asyncio.sleep(0.005)

            callers = [asyncio.create_task(caller()) for _ in range(4)]
            for stack, port in zip((one, other), ports, strict=True):
                before = answered
                await stack.aclose()
                assert answered > before
                worker = FakeWorker()
                await stack.enter_async_context(worker.listening(f"127.0.0.1:{port}", drain_delay_s=0.5))
                await worker.asked.wait()
            over.set()
            await asyncio.gather(*callers)
            assert changes.empty()


async def test_a_projection_that_meets_a_worker_without_its_network_is_tried_at_another() -> None:
    lacking = FakeWorker(fingerprint="e" * 64, error=WorkerMismatch("it has no such weights"))
    often = WorkerIntervals(describe_s=0.01)
    async with FakeWorker().listening("127.0.0.1:0") as port, lacking.listening("127.0.0.1:0") as other_port:
        target = f"ipv4:127.0.0.1:{port},127.0.0.1:{other_port}"
        async with watching_client(target, [FINGERPRINT], intervals=often) as (client, changes):
            while not client.ready:
                await changes.get()
            while not lacking.asked.is_set():
                assert await ranks(client) == [0]
            for _ in range(20):
                assert await ranks(client) == [0]


async def test_a_projection_that_no_worker_can_make_is_a_mismatch_and_is_retried(address: str) -> None:
    worker, often = FakeWorker(), WorkerIntervals(describe_s=0.01)
    async with worker.listening(address), watching_client(address, [FINGERPRINT], intervals=often) as (client, changes):
        assert await changes.get()
        worker.error = WorkerMismatch("it has unloaded them")
        with pytest.raises(WorkerMismatch):
            await ranks(client)
        assert not await changes.get()
        worker.error = None
        assert await changes.get(), "it must be asked again, and it has them by then"


async def test_a_channel_without_a_worker_for_long_is_replaced(address: str, tmp_path: Path) -> None:
    async with (
        FakeWorker().listening(address),
        grpc.aio.insecure_channel(address, worker_channel_options()) as second,
        watching_client(
            f"unix:{tmp_path}/nowhere.sock",
            intervals=WorkerIntervals(renew_s=0.02, replace_after_s=0.1),
            renew_channel=lambda force: second if force else None,
        ) as (_, changes),
    ):
        assert await changes.get()


async def test_the_tls_files_are_checked_at_once_when_the_worker_is_lost(address: str) -> None:
    renewals = asyncio.Queue[bool]()

    def renew(force: bool) -> None:
        renewals.put_nowait(force)

    async with watching_client(address, renew_channel=renew) as (_, changes):
        async with FakeWorker().listening(address):
            assert await changes.get()
            while renewals.qsize():
                renewals.get_nowait()
        assert not await changes.get()
        assert await renewals.get() is False, "the next regular check is a minute away"
