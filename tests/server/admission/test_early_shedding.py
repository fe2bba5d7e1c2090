"""A call is refused before its request is read if, and only if, no model would accept it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from fakes.call_context import FakeContext
from fakes.inference_requests import raw_request
from fakes.serving import FakeEngine, classify_request, running_server
from zfserve_runtime.errors import InvalidInput, Overloaded, Starting
from zfserve_runtime.grpc.status import from_call_error
from zfserve_server.admission.admission import Admission
from zfserve_server.admission.caller_identity import CallerIdentity, Priority
from zfserve_server.admission.early_shedding import all_models_busy, early_checks
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.models.registry import ModelRegistry

CLASSIFY, EXPLAIN = "/zfserve.v1.VisionService/Classify", "/zfserve.v1.VisionService/Explain"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Served:
    """Stands for a served model. It has only an admission."""

    def __init__(self, places: int) -> None:
        self.admission = Admission(places, ServiceRate())


def is_shed(method: str, *served: Served, metadata: tuple[tuple[str, str], ...] = ()) -> bool:
    models: Any = served
    call: Any = FakeContext(("x-client-id", "shop"), *metadata)
    if not all_models_busy(models):
        return False
    try:
        early_checks(models)[method](call, call.invocation_metadata())
    except Overloaded:
        return True
    return False


@pytest.mark.parametrize("method", [CLASSIFY, EXPLAIN, INFER])
def test_a_call_is_read_if_any_model_has_room(method: str) -> None:
    full, free = Served(1), Served(2)
    with full.admission.admit(), free.admission.admit():
        assert is_shed(method, full)
        assert not is_shed(method, full, free)
        assert not is_shed(method, free, full)
        with free.admission.admit():
            assert is_shed(method, full, free)
    assert not is_shed(method, full)


def test_a_check_takes_no_place() -> None:
    free = Served(2)
    with free.admission.admit():
        for _ in range(3):
            assert not is_shed(CLASSIFY, free)
        assert free.admission.in_flight == 1
    assert free.admission.in_flight == 0


def test_without_a_model_no_call_is_shed() -> None:
    assert not all_models_busy(ModelRegistry(lambda: Starting("not yet")))


def test_a_request_may_raise_its_priority() -> None:
    """An inference request carries its own priority, which may be higher than that of the metadata.

    The bulk requests in flight have all places that bulk may get. An interactive request still gets one.
    """
    served, bulk = Served(4), ("x-priority", "bulk")
    with ExitStack() as stack:
        for client in ("a", "b"):
            stack.enter_context(served.admission.admit(CallerIdentity(client, Priority.BULK)))
        assert is_shed(CLASSIFY, served, metadata=(bulk,))
        assert not is_shed(CLASSIFY, served)
        assert not is_shed(INFER, served, metadata=(bulk,))


@pytest.mark.parametrize("method", [CLASSIFY, EXPLAIN, INFER])
def test_a_call_with_an_invalid_priority_is_not_read(method: str) -> None:
    busy = Served(9)
    with busy.admission.admit(), pytest.raises(InvalidInput):
        is_shed(method, busy, metadata=(("x-priority", "urgent"),))


@pytest.mark.parametrize("method", [CLASSIFY, INFER])
async def test_a_full_server_refuses_a_photo_before_it_is_sent(engine: FakeEngine, method: str) -> None:
    sending, requests = asyncio.Event(), {CLASSIFY: classify_request(2), INFER: raw_request(2)}

    async def request() -> AsyncIterator[bytes]:
        await sending.wait()
        yield requests[method].SerializeToString()

    async with running_server(engine, max_queue=1) as server:
        engine.open.clear()
        first = asyncio.ensure_future(server.vision.Classify(classify_request(1)))
        await engine.begun()
        call: Any = server.channel.stream_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request(), timeout=60)
        error = from_call_error(refused.value)
        assert type(error) is Overloaded
        assert error.retry_after_s is not None
        engine.open.set()
        await first
        later = asyncio.ensure_future(call(request(), timeout=60))
        sending.set()
        assert await later
        assert engine.batches == [[1], [2]]


async def test_a_full_server_refuses_an_explanation_before_its_photo_is_sent(engine: FakeEngine) -> None:
    sending = asyncio.Event()

    async def request() -> AsyncIterator[bytes]:
        await sending.wait()
        yield b""

    async with running_server(engine, max_queue=1) as server:
        engine.open.clear()
        first = asyncio.ensure_future(server.vision.Classify(classify_request(1)))
        await engine.begun()
        call: Any = server.channel.stream_unary(EXPLAIN)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request(), timeout=60)
        assert type(from_call_error(refused.value)) is Overloaded
        engine.open.set()
        await first


async def test_a_call_counts_once_for_its_rate_limit(engine: FakeEngine) -> None:
    async with running_server(engine, client_rate=1e-6, client_burst=2) as server:
        for identity in range(2):
            assert (await server.vision.Classify(classify_request(identity))).features[0] == identity
