"""`ModelStreamInfer` is called through a real channel, with a fake engine."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fakes.inference_requests import floats, raw_request
from fakes.serving import FakeEngine, Running, running_server
from zfserve_protos.inference import grpc_service_pb2 as pb


async def test_a_stream_is_answered_in_order_and_outlives_errors(server: Running) -> None:
    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(100):
            yield raw_request(number, id=str(number)) if number % 10 else pb.ModelInferRequest()

    answers = [answer async for answer in server.inference.ModelStreamInfer(requests())]
    assert len(answers) == 100
    for number, answer in enumerate(answers):
        if number % 10:
            assert answer.infer_response.id == str(number)
            assert floats(answer.infer_response, 1)[0, 0] == number
        else:
            assert "0 inputs" in answer.error_message


async def test_a_drain_answers_the_requests_that_a_stream_has_read_and_ends_the_stream(
    server: Running, engine: FakeEngine
) -> None:
    """An idle stream would hold up the drain for its whole grace period."""
    engine.open.clear()
    stream = server.inference.ModelStreamInfer()
    await stream.write(raw_request(1))
    await engine.begun()
    await stream.write(raw_request(2))
    await server.wait_for_queue_depth(1)
    server.stop.ask("test")
    engine.open.set()
    answers: list[Any] = [await stream.read(), await stream.read()]
    assert [floats(answer.infer_response, 1)[0, 0] for answer in answers] == [1, 2]
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.ended


async def test_a_client_that_leaves_its_stream_frees_its_places(engine: FakeEngine) -> None:
    async with running_server(engine, max_queue=2) as server:
        engine.open.clear()
        stream = server.inference.ModelStreamInfer()
        await stream.write(raw_request(1, 2))
        await engine.begun()
        stream.cancel()
        await server.wait_for_metric('zfserve_in_flight{method="/inference.GRPCInferenceService/ModelStreamInfer"} 0.0')
        engine.open.set()
        assert floats(await server.inference.ModelInfer(raw_request(3, 4)), 1)[:, 0].tolist() == [3, 4]


async def test_a_malformed_request_ends_a_stream_after_the_requests_before_it_are_answered(server: Running) -> None:
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    call: Any = server.channel.stream_stream(method)()
    await call.write(raw_request(7).SerializeToString())
    await call.write(b"\xff no message")
    answered = pb.ModelStreamInferResponse.FromString(await call.read())
    assert floats(answered.infer_response, 1)[0, 0] == 7
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
