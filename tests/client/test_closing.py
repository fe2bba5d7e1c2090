"""Tests clients and streams that are closed during their calls."""

import asyncio
import threading
from contextlib import aclosing, closing

import grpc
import pytest
from fakes.vision_service import Failure, FakeVisionService, listening
from zfserve import AsyncClient, Cancelled, Classification, Client, Unavailable, ZfserveError


def test_closing_the_client_ends_calls_in_flight(address: str, service: FakeVisionService) -> None:
    service.open.clear()
    client = Client(address)
    answers = client.classify_many([b"1"])

    def close() -> None:
        assert service.arrived.acquire(timeout=30)
        client.close()

    closer = threading.Thread(target=close)
    closer.start()
    (answer,) = answers
    closer.join()
    assert isinstance(answer, Cancelled)


def test_closing_the_async_client_ends_calls_and_cancels_no_task(address: str, service: FakeVisionService) -> None:
    service.open.clear()

    async def closed() -> list[Classification | BaseException]:
        client = AsyncClient(address)
        calls = [asyncio.create_task(client.classify(b"1")) for _ in range(2)]
        assert await asyncio.to_thread(service.arrived.acquire, timeout=30)
        await client.close()
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(closed())] == [Cancelled, Cancelled]


def test_a_closed_client_says_so(address: str) -> None:
    client = Client(address)
    client.close()
    for call in (
        client.describe,
        client.is_serving,
        lambda: client.classify(b"1"),
        lambda: [*client.project(b"1", "c")],
    ):
        with pytest.raises(Cancelled, match="the client is closed"):
            call()
    (answer,) = client.classify_many([b"1"])
    assert isinstance(answer, Cancelled)

    async def closed() -> None:
        client = AsyncClient(address)
        await client.close()
        await client.describe()

    with pytest.raises(Cancelled, match="the client is closed"):
        asyncio.run(closed())


def test_each_client_has_a_connection_of_its_own(address: str, service: FakeVisionService) -> None:
    """A new client does not share the backoff of an older one, which may wait before it connects again."""

    async def by_async_clients() -> None:
        async with AsyncClient(address) as third, AsyncClient(address) as fourth:
            await third.classify(b"1")
            await fourth.classify(b"1")

    with Client(address) as first, Client(address) as second:
        first.classify(b"1")
        second.classify(b"1")
        asyncio.run(by_async_clients())
    assert len(service.peers) == 4


def test_closing_the_projections_stops_the_work(address: str, service: FakeVisionService) -> None:
    service.open.clear()
    with Client(address) as client:
        with closing(client.project(b"1", "conv5")) as projections:
            assert next(projections).rank == 0
        assert service.cancelled.wait(timeout=30)
        assert not service.open.is_set()


def test_closing_the_async_projections_stops_the_work(address: str, service: FakeVisionService) -> None:
    async def take_one() -> None:
        async with AsyncClient(address) as client:
            async with aclosing(client.project(b"1", "conv5")) as projections:
                assert (await anext(projections)).rank == 0
            assert await asyncio.to_thread(service.cancelled.wait, 30)

    service.open.clear()
    asyncio.run(take_one())
    assert not service.open.is_set()


def test_a_stream_ends_although_its_server_is_gone_before_the_retry(service: FakeVisionService) -> None:
    """The first attempt is refused. When the second one begins, nobody listens any more."""
    service.failures = [Failure(grpc.StatusCode.UNAVAILABLE, pushback_ms=300)]
    errors: list[ZfserveError] = []

    def read(port: int) -> None:
        with Client(f"127.0.0.1:{port}", timeout_s=10) as client:
            try:
                list(client.project(b"1", "conv5"))
            except ZfserveError as error:
                errors.append(error)

    with listening(service) as port:
        reader = threading.Thread(target=read, args=(port,), daemon=True)
        reader.start()
        while not service.metadata:
            reader.join(0.01)
    reader.join(30)
    assert [type(error) for error in errors] == [Unavailable]


def test_closing_the_client_ends_a_stream_that_another_thread_reads(address: str, service: FakeVisionService) -> None:
    service.open.clear()
    client = Client(address)
    projections = client.project(b"1", "conv5")
    assert next(projections).rank == 0
    closer = threading.Timer(0.2, client.close)
    closer.start()
    with pytest.raises(Cancelled):
        next(projections)
    closer.join()
