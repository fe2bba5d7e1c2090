"""Requests to companion models that are wrong or not permitted are refused before the worker works."""

import asyncio
from pathlib import Path

import grpc
import pytest
from fakes.callers import bearer, write_callers
from fakes.inference_requests import error_of, number_parameter, output, raw_request, text_parameter
from fakes.serving import FakeEngine, FakeWorker, Running, projection_is, running_server
from zfserve_protos.inference import grpc_service_pb2 as oip
from zfserve_runtime.access.callers_file import CallersFile, read_callers_file, write_callers_file
from zfserve_runtime.errors import InvalidInput, NotFound, OutOfRange, PermissionDenied, ServiceError

PROJECT, EXPLAIN = "fake.project", "fake.explain"


@pytest.mark.parametrize(
    ("request_", "error", "field", "words"),
    [
        pytest.param(
            raw_request(1, model_name="nobody.project"), NotFound, "model.name", "no model 'nobody'", id="name"
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, model_version="6"), NotFound, "model.version", "only in 7", id="version"
        ),
        pytest.param(raw_request(1, 2, model_name=PROJECT), InvalidInput, "inputs[pixels].shape", "N = 1", id="batch"),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"layer": text_parameter("conv9")}),
            NotFound,
            "layer",
            "conv1",
            id="layer",
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"strongest": number_parameter(7)}),
            OutOfRange,
            "strongest",
            "6 maps",
            id="more maps than the layer has",
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"strongest": number_parameter(0)}),
            InvalidInput,
            "strongest",
            "ask for 1 to 6",
            id="no maps",
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"strongest": number_parameter(65)}),
            InvalidInput,
            "parameters[strongest]",
            "at most 64 maps",
            id="too many maps",
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"strongest": number_parameter(2**62)}),
            InvalidInput,
            "parameters[strongest]",
            "at most 64 maps",
            id="a number that the message cannot hold",
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"strongest": text_parameter("2")}),
            InvalidInput,
            "parameters[strongest]",
            "whole number",
            id="a number as text",
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"maps": text_parameter(",".join(["1"] * 65))}),
            InvalidInput,
            "parameters[maps]",
            "at most 64 maps",
            id="a long list of maps",
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"maps": text_parameter("1;2")}),
            InvalidInput,
            "parameters[maps]",
            "list of whole numbers",
            id="no list",
        ),
        pytest.param(
            raw_request(
                1, model_name=PROJECT, parameters={"maps": text_parameter("1"), "for_class": text_parameter("")}
            ),
            InvalidInput,
            "parameters[for_class]",
            "not both",
            id="maps and class",
        ),
        pytest.param(
            raw_request(1, model_name=PROJECT, parameters={"unit": text_parameter("weakest")}),
            InvalidInput,
            "parameters[unit]",
            "no such unit",
            id="unit",
        ),
        pytest.param(
            raw_request(1, model_name=EXPLAIN, parameters={"method": text_parameter("lime")}),
            InvalidInput,
            "parameters[method]",
            "grad-cam",
            id="method",
        ),
        pytest.param(
            raw_request(1, model_name=EXPLAIN, parameters={"class_name": text_parameter("bee")}),
            NotFound,
            "class_name",
            "no class 'bee'",
            id="class",
        ),
        pytest.param(
            raw_request(1, model_name=EXPLAIN, parameters={"layer": number_parameter(1)}),
            InvalidInput,
            "parameters[layer]",
            "text",
            id="no text",
        ),
        pytest.param(
            raw_request(1, model_name=EXPLAIN, outputs=[output("probabilities")]),
            InvalidInput,
            "outputs[probabilities]",
            "only heatmap",
            id="output",
        ),
        pytest.param(
            raw_request(1, model_name=EXPLAIN, outputs=[output("heatmap", classification=number_parameter(3))]),
            InvalidInput,
            "outputs[heatmap]",
            "no classes",
            id="classification",
        ),
        pytest.param(
            raw_request(1, model_name=EXPLAIN, parameters={"sequence_id": number_parameter(3)}),
            InvalidInput,
            "parameters[sequence_id]",
            "no state",
            id="sequence",
        ),
    ],
)
async def test_wrong_requests_are_refused(
    paired_server: Running,
    worker: FakeWorker,
    request_: oip.ModelInferRequest,
    error: type[ServiceError],
    field: str,
    words: str,
) -> None:
    refused = await error_of(paired_server.inference.ModelInfer(request_))
    assert type(refused) is error
    assert refused.field == field
    assert words in refused.message
    assert not worker.requests
    assert not worker.explain_requests


async def test_infer_alone_reaches_the_model_only(worker: FakeWorker, address: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    tokens = write_callers(file, shop="infer", seer="infer,project", sage="infer,explain", odd="project,explain")
    async with (
        worker.listening(address),
        running_server(FakeEngine(), tokens=file, worker=True, worker_address=address) as server,
    ):
        await projection_is(server, serving=True)

        async def refused_names(caller: str) -> list[str]:
            calls = {
                name: server.inference.ModelInfer(raw_request(1, model_name=name), metadata=bearer(tokens[caller]))
                for name in ("fake", PROJECT, EXPLAIN)
            }
            return [name for name, call in calls.items() if await call.code() is grpc.StatusCode.PERMISSION_DENIED]

        assert await refused_names("shop") == [PROJECT, EXPLAIN]
        assert await refused_names("seer") == [EXPLAIN]
        assert await refused_names("sage") == [PROJECT]
        assert await refused_names("odd") == ["fake", PROJECT, EXPLAIN]
        request = raw_request(1, model_name=PROJECT)
        refused = await error_of(server.inference.ModelInfer(request, metadata=bearer(tokens["shop"])))
        assert isinstance(refused, PermissionDenied)
        assert "shop may not call /zfserve.v1.VisionService/Project" in refused.message


async def test_a_caller_that_loses_its_permission_loses_it_on_an_open_stream(
    worker: FakeWorker, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    tokens = write_callers(file, seer="infer,project")
    async with (
        worker.listening(address),
        running_server(FakeEngine(), tokens=file, worker=True, worker_address=address) as server,
    ):
        await projection_is(server, serving=True)
        call = server.inference.ModelStreamInfer(metadata=bearer(tokens["seer"]))
        request = raw_request(1, model_name=PROJECT)
        await call.write(request)
        assert not (await _read(call)).error_message
        (seer,) = read_callers_file(file).callers
        changed = CallersFile(callers=(seer.model_copy(update={"allow": ("infer",)}),))
        await asyncio.to_thread(write_callers_file, file, changed)
        async with asyncio.timeout(30):
            while True:
                await call.write(request)
                if message := (await _read(call)).error_message:
                    break
        assert "seer may not call /zfserve.v1.VisionService/Project" in message
        await call.write(raw_request(1))
        assert not (await _read(call)).error_message
        call.cancel()


async def _read(
    call: "grpc.aio.StreamStreamCall[oip.ModelInferRequest, oip.ModelStreamInferResponse]",
) -> oip.ModelStreamInferResponse:
    answer = await call.read()
    assert isinstance(answer, oip.ModelStreamInferResponse)
    return answer
