"""The Open Inference Protocol through a real channel, with a fake engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from fakes.inference_requests import (
    Contents,
    Parameter,
    of_files,
    output,
    png,
    prefixed,
    raw_request,
    tensor,
    typed_request,
)
from fakes.serving import CLASSES, MANIFEST, FakeEngine, Running, classify_request, running_server
from fakes.shelf import Shelf
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import EngineFailed, InvalidInput, NotFound, Overloaded, ServiceError, Unimplemented
from zfserve_runtime.health import INFERENCE_SERVICE
from zfserve_runtime.status import from_call_error

if TYPE_CHECKING:
    from zfserve_protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceAsyncStub


def stub(server: Running) -> "GRPCInferenceServiceAsyncStub":
    return GRPCInferenceServiceStub(server.channel)


def floats(answer: pb.ModelInferResponse, index: int) -> npt.NDArray[np.float32]:
    """An output of a raw answer."""
    return np.frombuffer(answer.raw_output_contents[index], "<f4").reshape(tuple(answer.outputs[index].shape))


async def error_of(call: "grpc.aio.UnaryUnaryCall[Any, Any]") -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    error = from_call_error(failed.value)
    assert error is not None, failed.value
    return error


async def test_raw_pixels_are_answered_raw_row_by_row(server: Running, engine: FakeEngine) -> None:
    answer = await stub(server).ModelInfer(raw_request(263, 4, id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("fake", "7", "seven")
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("probabilities", "FP32", [2, CLASSES]),
        ("features", "FP32", [2, 2]),
    ]
    assert floats(answer, 0).argmax(axis=1).tolist() == [7, 4]
    assert floats(answer, 1).tolist() == [[263, 526], [4, 8]]
    assert not any(each.HasField("contents") for each in answer.outputs)
    assert engine.batches == [[263, 4]]


async def test_typed_pixels_are_answered_typed(server: Running) -> None:
    answer = await stub(server).ModelInfer(typed_request(263, 4, outputs=[output("features")]))
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.fp32_contents) == [263, 526, 4, 8]


async def test_the_form_of_the_answer_can_be_asked_for(server: Running) -> None:
    parameters = {"binary_data_output": Parameter(bool_param=True)}
    answer = await stub(server).ModelInfer(typed_request(4, parameters=parameters))
    assert floats(answer, 1).tolist() == [[4, 8]]
    parameters = {"binary_data_output": Parameter(bool_param=False)}
    answer = await stub(server).ModelInfer(raw_request(4, parameters=parameters))
    assert list(answer.outputs[1].contents.fp32_contents) == [4, 8]


async def test_image_files(server: Running) -> None:
    files = [png(3), png(5)]
    contents = Contents(bytes_contents=files)
    typed = pb.ModelInferRequest(inputs=[tensor("image", "BYTES", 2, 1, contents=contents)])
    for request in (typed, of_files(*files)):
        request.parameters["binary_data_output"].bool_param = True
        answer = await stub(server).ModelInfer(request)
        assert floats(answer, 0).argmax(axis=1).tolist() == [3, 5]


async def test_outputs_are_answered_as_and_in_the_order_asked_for(server: Running) -> None:
    wanted = [output("features"), output("probabilities", classification=Parameter(int64_param=2))]
    answer = await stub(server).ModelInfer(raw_request(5, 6, outputs=wanted))
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("features", "FP32", [2, 2]),
        ("probabilities", "BYTES", [2, 2]),
    ]
    best = (b"0.550000:5:class 5", b"0.050000:0:class 0", b"0.550000:6:class 6", b"0.050000:0:class 0")
    assert answer.raw_output_contents[1] == prefixed(*best)
    answer = await stub(server).ModelInfer(typed_request(5, 6, outputs=wanted))
    assert tuple(answer.outputs[1].contents.bytes_contents) == best


async def test_classification_of_more_than_there_are(server: Running) -> None:
    wanted = [output(name, classification=Parameter(int64_param=99)) for name in ("probabilities", "features")]
    answer = await stub(server).ModelInfer(typed_request(5, outputs=wanted))
    assert len(answer.outputs[0].contents.bytes_contents) == CLASSES
    assert list(answer.outputs[1].contents.bytes_contents) == [b"10.000000:1", b"5.000000:0"]


async def test_what_is_wrong_is_said(server: Running, engine: FakeEngine) -> None:
    """Once through the channel; `test_inference_tensors` has them all."""
    unnamed = pb.ModelInferRequest(inputs=[tensor("x", "UINT8", 1)])
    no_image = of_files(png(1), b"none")
    sequence = raw_request(1, parameters={"sequence_id": Parameter(int64_param=1)})
    for request, field, words in (
        (unnamed, "inputs[x]", "no input 'x'"),
        (no_image, "inputs[image]", "image 1: "),
        (sequence, "parameters[sequence_id]", "no state"),
    ):
        error = await error_of(stub(server).ModelInfer(request))
        assert isinstance(error, InvalidInput)
        assert error.field == field
        assert words in error.message
    assert engine.batches == [[1]] or not engine.batches  # the image beside the one that is none


async def test_a_model_that_is_not_here(server: Running) -> None:
    for name, version in (("nobody", ""), ("fake", "8")):
        error = await error_of(stub(server).ModelInfer(raw_request(1, model_name=name, model_version=version)))
        assert type(error) is NotFound


async def test_parameters_that_say_nothing_are_taken(server: Running) -> None:
    """As some clients send them with every request."""
    parameters = {
        "sequence_id": Parameter(int64_param=0),
        "sequence_start": Parameter(bool_param=False),
        "priority": Parameter(uint64_param=0),
        "timeout": Parameter(int64_param=0),
        "my_note": Parameter(string_param="kept by nobody"),
    }
    assert floats(await stub(server).ModelInfer(raw_request(4, parameters=parameters)), 1).tolist() == [[4, 8]]


async def test_a_bad_image_fails_its_request_and_nobody_else(server: Running, engine: FakeEngine) -> None:
    engine.open.clear()
    first = asyncio.ensure_future(stub(server).ModelInfer(raw_request(1)))
    await engine.begun()
    mate = asyncio.ensure_future(stub(server).ModelInfer(raw_request(2, 3)))
    bad = of_files(png(4), b"no image")
    assert isinstance(await error_of(stub(server).ModelInfer(bad)), InvalidInput)
    engine.open.set()
    await first
    assert floats(await mate, 1).tolist() == [[2, 4], [3, 6]]


async def test_rows_of_several_requests_share_a_batch(server: Running, engine: FakeEngine) -> None:
    engine.open.clear()
    first = asyncio.ensure_future(server.vision.Classify(classify_request(9)))
    await engine.begun()
    calls = [asyncio.ensure_future(stub(server).ModelInfer(raw_request(*rows))) for rows in ((1, 2, 3), (4, 5, 6, 7))]
    await waiting(server, 7)
    engine.open.set()
    answers = await asyncio.gather(*calls)
    await first
    assert [len(batch) for batch in engine.batches] == [1, 4, 3]
    assert [floats(answer, 1)[:, 0].tolist() for answer in answers] == [[1, 2, 3], [4, 5, 6, 7]]


async def waiting(server: Running, images: int) -> None:
    """Wait until so many images wait for the engine."""
    await server.told(f'zfserve_queue_depth{{model="fake",version="7"}} {images}.0')


async def test_images_and_not_requests_take_the_places(engine: FakeEngine) -> None:
    async with running_server(engine, max_queue=3) as server:
        assert type(await error_of(stub(server).ModelInfer(raw_request(1, 2, 3, 4)))) is Overloaded
        assert floats(await stub(server).ModelInfer(raw_request(1, 2, 3)), 1)[:, 0].tolist() == [1, 2, 3]


async def test_the_parameter_timeout_is_a_deadline(server: Running, engine: FakeEngine) -> None:
    engine.open.clear()
    first = asyncio.ensure_future(stub(server).ModelInfer(raw_request(1)))
    await engine.begun()
    hurried = raw_request(2, parameters={"timeout": Parameter(int64_param=1)})
    late = asyncio.ensure_future(error_of(stub(server).ModelInfer(hurried)))
    mate = asyncio.ensure_future(stub(server).ModelInfer(raw_request(3)))
    await waiting(server, 2)
    engine.open.set()
    assert (await late).status is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.gather(first, mate)
    assert all(2 not in batch for batch in engine.batches)


async def test_statistics_count_what_was_done(server: Running, engine: FakeEngine) -> None:
    service = stub(server)
    assert (await service.ModelStatistics(pb.ModelStatisticsRequest())).model_stats[0].last_inference == 0
    await service.ModelInfer(raw_request(1, 2, 3))
    await server.vision.Classify(classify_request(4))
    await error_of(service.ModelInfer(pb.ModelInferRequest()))
    engine.failures.append(RuntimeError("no"))
    assert isinstance(await error_of(service.ModelInfer(raw_request(5))), EngineFailed)
    (counted,) = (await service.ModelStatistics(pb.ModelStatisticsRequest(name="fake", version="7"))).model_stats
    assert (counted.name, counted.version) == ("fake", "7")
    assert (counted.inference_count, counted.execution_count) == (4, 2)
    stages = counted.inference_stats
    assert (stages.success.count, stages.fail.count) == (2, 2)
    parts = (stages.queue, stages.compute_input, stages.compute_infer, stages.compute_output)
    assert [part.count for part in parts] == [2, 2, 2, 2]
    assert 0 < sum(part.ns for part in parts) <= stages.success.ns
    assert [(batch.batch_size, batch.compute_infer.count) for batch in counted.batch_stats] == [(1, 1), (3, 1)]
    assert counted.last_inference > 1.6e12


async def test_the_server_and_its_model_are_described(server: Running) -> None:
    service = stub(server)
    assert (await service.ServerLive(pb.ServerLiveRequest())).live
    assert (await service.ServerReady(pb.ServerReadyRequest())).ready
    assert (await service.ModelReady(pb.ModelReadyRequest(name="fake", version="7"))).ready
    assert not (await service.ModelReady(pb.ModelReadyRequest(name="fake", version="8"))).ready
    assert "classification" in (await service.ServerMetadata(pb.ServerMetadataRequest())).extensions
    metadata = await service.ModelMetadata(pb.ModelMetadataRequest(name="fake"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("fake", ["7"], "fake")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.outputs] == [
        ("probabilities", "FP32", [-1, CLASSES]),
        ("features", "FP32", [-1, 2]),
    ]
    config = (await service.ModelConfig(pb.ModelConfigRequest(name="fake"))).config
    assert (config.max_batch_size, config.dynamic_batching.default_queue_policy.max_queue_size) == (4, 256)
    (group,) = config.instance_group
    assert (group.kind, group.count) == (group.KIND_CPU, 1)
    assert config.parameters["precision"].string_value == "fp32"
    index = await service.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [(each.name, each.version, each.state) for each in index.models] == [("fake", "7", "READY")]


async def test_several_models_and_versions() -> None:
    shelf, older, newer = Shelf(), FakeEngine(), FakeEngine()
    shelf.put(MANIFEST, older)
    shelf.put(MANIFEST.model_copy(update={"version": "8"}), newer)
    shelf.put(MANIFEST.model_copy(update={"name": "bad"}), error=BundleError("its engine is stale"))
    async with running_server(shelf=shelf, strict_readiness=False, keep_versions=2, default_model="fake") as server:
        service = stub(server)
        for version, answered, engine in (("", "8", newer), ("8", "8", newer), ("7", "7", older)):
            engine.batches.clear()
            answer = await service.ModelInfer(raw_request(5, model_version=version))
            assert answer.model_version == answered
            assert engine.batches == [[5]]
        assert list((await service.ModelMetadata(pb.ModelMetadataRequest(name="fake"))).versions) == ["7", "8"]
        counted = (await service.ModelStatistics(pb.ModelStatisticsRequest(name="fake"))).model_stats
        assert {each.version: each.inference_count for each in counted} == {"7": 1, "8": 2}
        index = (await service.RepositoryIndex(pb.RepositoryIndexRequest())).models
        assert {(each.name, each.version): each.state for each in index} == {
            ("fake", "7"): "READY",
            ("fake", "8"): "READY",
            ("bad", "7"): "UNAVAILABLE",
        }
        assert [each.reason for each in index if each.name == "bad"] != [""]
        ready = (await service.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
        assert {each.name for each in ready} == {"fake"}
        assert not (await service.ModelReady(pb.ModelReadyRequest(name="bad"))).ready


async def test_what_is_left_out_says_so(server: Running) -> None:
    service = stub(server)
    for call in (
        service.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="fake")),
        service.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="fake")),
        service.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()),
        service.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest()),
        service.TraceSetting(pb.TraceSettingRequest()),
        service.LogSettings(pb.LogSettingsRequest()),
        service.ModelInfer(
            raw_request(1, outputs=[output("features", shared_memory_region=Parameter(string_param="r"))])
        ),
    ):
        assert type(await error_of(call)) is Unimplemented


async def test_a_stream_is_answered_in_order_and_outlives_errors(server: Running) -> None:
    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(100):
            yield raw_request(number, id=str(number)) if number % 10 else pb.ModelInferRequest()

    answers = [answer async for answer in stub(server).ModelStreamInfer(requests())]
    assert len(answers) == 100
    for number, answer in enumerate(answers):
        if number % 10:
            assert answer.infer_response.id == str(number)
            assert floats(answer.infer_response, 1)[0, 0] == number
        else:
            assert "0 inputs" in answer.error_message


async def test_a_drain_answers_what_a_stream_has_read_and_ends_it(server: Running, engine: FakeEngine) -> None:
    """An idle stream would hold up the drain for its whole grace period."""
    engine.open.clear()
    stream = stub(server).ModelStreamInfer()
    await stream.write(raw_request(1))
    await engine.begun()
    await stream.write(raw_request(2))
    await waiting(server, 1)
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
        stream = stub(server).ModelStreamInfer()
        await stream.write(raw_request(1, 2))
        await engine.begun()
        stream.cancel()
        await server.told('zfserve_in_flight{method="/inference.GRPCInferenceService/ModelStreamInfer"} 0.0')
        engine.open.set()
        assert floats(await stub(server).ModelInfer(raw_request(3, 4)), 1)[:, 0].tolist() == [3, 4]


async def test_a_generic_client_needs_nothing_but_reflection(server: Running) -> None:
    """As grpcurl and ghz call: messages and methods are learned from the server."""

    def call() -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert INFERENCE_SERVICE in database.get_services()
            pool = DescriptorPool(database)
            method = pool.FindServiceByName(INFERENCE_SERVICE).FindMethodByName("ModelInfer")
            request: Any = GetMessageClass(method.input_type)()
            ParseDict(
                {
                    "modelName": "fake",
                    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "contents": {}}],
                    "outputs": [{"name": "probabilities", "parameters": {"classification": {"int64Param": 1}}}],
                },
                request,
            )
            request.inputs[0].contents.bytes_contents.append(png(3))
            answer = GetMessageClass(method.output_type)
            infer: Any = channel.unary_unary(
                f"/{INFERENCE_SERVICE}/{method.name}", type(request).SerializeToString, answer.FromString
            )
            return infer(request, timeout=30)

    answer = await asyncio.to_thread(call)
    assert list(answer.outputs[0].contents.bytes_contents) == [b"0.550000:3:class 3"]
