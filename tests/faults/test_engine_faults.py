"""Tests what callers see when an engine raises, hangs or computes nonsense.

The details are tested in tests/server/batching: test_watchdog.py and test_batcher.py.
"""

import asyncio

import grpc
import pytest
from fakes.model_repository import FakeModelRepository
from fakes.serving import MANIFEST, FakeEngine, Running, classify_request, running_server
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from zfserve_protos.methods import VISION_SERVICE
from zfserve_runtime.errors import EngineFailed, EngineHung, EngineLost, ServiceError
from zfserve_runtime.grpc.status import from_call_error


async def error_of(server: Running, identity: int) -> ServiceError | None:
    try:
        await server.vision.Classify(classify_request(identity))
    except grpc.aio.AioRpcError as error:
        return from_call_error(error)
    return None


async def test_a_bad_image_fails_alone_and_the_rest_of_its_batch_is_answered(engine: FakeEngine) -> None:
    async with running_server(engine) as server:
        engine.open.clear()
        first = asyncio.create_task(error_of(server, 0))
        await engine.begun()
        engine.poison, engine.not_finite = {3}, {5}
        calls = [asyncio.create_task(error_of(server, identity)) for identity in range(1, 9)]
        engine.open.set()
        outcomes = [await first, *await asyncio.gather(*calls)]
        assert [type(outcome) for outcome in outcomes] == [
            EngineFailed if identity in (3, 5) else type(None) for identity in range(9)
        ]


@pytest.mark.parametrize("replacement_hangs_too", [False, True])
async def test_an_engine_that_hangs_is_replaced_and_health_says_so(
    engine: FakeEngine, replacement_hangs_too: bool
) -> None:
    replacement = FakeEngine()
    repository = FakeModelRepository(reopen=lambda: replacement)
    repository.put(MANIFEST, engine)
    async with running_server(repository=repository, engine_timeout=0.4) as server:
        watch = HealthStub(server.channel).Watch(HealthCheckRequest(service=VISION_SERVICE))
        statuses = aiter(watch)
        assert (await anext(statuses)).status == HealthCheckResponse.SERVING
        engine.open.clear()
        if replacement_hangs_too:
            replacement.open.clear()
        caught = asyncio.create_task(error_of(server, 1))
        await engine.begun()
        waiting = asyncio.create_task(error_of(server, 2))
        assert (await anext(statuses)).status == HealthCheckResponse.NOT_SERVING
        assert type(await caught) is EngineHung
        if not replacement_hangs_too:
            assert (await anext(statuses)).status == HealthCheckResponse.SERVING
            assert await waiting is None
            assert await error_of(server, 3) is None
        else:
            assert type(await waiting) is EngineHung
            await asyncio.wait([server.ended])
            assert isinstance(server.ended.exception(), EngineLost)
        for held in (engine, replacement):
            held.open.set()
        watch.cancel()
