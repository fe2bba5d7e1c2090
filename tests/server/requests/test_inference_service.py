"""Tests the Open Inference Protocol through a real channel, with a fake engine."""

import asyncio
from typing import Any

import grpc
from fakes.inference_requests import (
    Contents,
    Parameter,
    error_of,
    floats,
    of_files,
    output,
    png,
    prefixed,
    raw_request,
    tensor,
    typed_request,
)
from fakes.serving import CLASSES, FakeEngine, Running, classify_request, running_server
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_protos.methods import INFERENCE_SERVICE
from zfserve_runtime.errors import EngineFailed, InvalidInput, NotFound, Overloaded


async def test_raw_pixels_are_answered_raw_row_by_row(server: Running, engine: FakeEngine) -> None:
    answer = await server.inference.ModelInfer(raw_request(263, 4, id="seven"))
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
    answer = await server.inference.ModelInfer(typed_request(263, 4, outputs=[output("features")]))
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.fp32_contents) == [263, 526, 4, 8]


async def test_a_parameter_sets_the_form_of_the_answer(server: Running) -> None:
    parameters = {"binary_data_output": Parameter(bool_param=True)}
    answer = await server.inference.ModelInfer(typed_request(4, parameters=parameters))
    assert floats(answer, 1).tolist() == [[4, 8]]
    parameters = {"binary_data_output": Parameter(bool_param=False)}
    answer = await server.inference.ModelInfer(raw_request(4, parameters=parameters))
    assert list(answer.outputs[1].contents.fp32_contents) == [4, 8]


async def test_image_files(server: Running) -> None:
    files = [png(3), png(5)]
    contents = Contents(bytes_contents=files)
    typed = pb.ModelInferRequest(inputs=[tensor("image", "BYTES", 2, 1, contents=contents)])
    for request in (typed, of_files(*files)):
        request.parameters["binary_data_output"].bool_param = True
        answer = await server.inference.ModelInfer(request)
        assert floats(answer, 0).argmax(axis=1).tolist() == [3, 5]


async def test_outputs_have_the_form_and_order_of_the_request(server: Running) -> None:
    wanted = [output("features"), output("probabilities", classification=Parameter(int64_param=2))]
    answer = await server.inference.ModelInfer(raw_request(5, 6, outputs=wanted))
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("features", "FP32", [2, 2]),
        ("probabilities", "BYTES", [2, 2]),
    ]
    best = (b"0.550000:5:class 5", b"0.050000:0:class 0", b"0.550000:6:class 6", b"0.050000:0:class 0")
    assert answer.raw_output_contents[1] == prefixed(*best)
    answer = await server.inference.ModelInfer(typed_request(5, 6, outputs=wanted))
    assert tuple(answer.outputs[1].contents.bytes_contents) == best


async def test_classification_of_more_classes_than_exist(server: Running) -> None:
    wanted = [output(name, classification=Parameter(int64_param=99)) for name in ("probabilities", "features")]
    answer = await server.inference.ModelInfer(typed_request(5, outputs=wanted))
    assert len(answer.outputs[0].contents.bytes_contents) == CLASSES
    assert list(answer.outputs[1].contents.bytes_contents) == [b"10.000000:1", b"5.000000:0"]


async def test_an_invalid_request_is_named(server: Running, engine: FakeEngine) -> None:
    """The test sends a few invalid requests through a channel. `test_inference_tensors` tests all kinds."""
    unnamed = pb.ModelInferRequest(inputs=[tensor("x", "UINT8", 1)])
    no_image = of_files(png(1), b"none")
    sequence = raw_request(1, parameters={"sequence_id": Parameter(int64_param=1)})
    for request, field, words in (
        (unnamed, "inputs[x]", "no input 'x'"),
        (no_image, "inputs[image]", "image 1: "),
        (sequence, "parameters[sequence_id]", "no state"),
    ):
        error = await error_of(server.inference.ModelInfer(request))
        assert isinstance(error, InvalidInput)
        assert error.field == field
        assert words in error.message
    assert engine.batches == [[1]] or not engine.batches  # the valid image of `no_image` may have run


async def test_an_unknown_model_is_not_found(server: Running) -> None:
    for name, version in (("nobody", ""), ("fake", "8")):
        error = await error_of(server.inference.ModelInfer(raw_request(1, model_name=name, model_version=version)))
        assert type(error) is NotFound


async def test_neutral_and_unknown_parameters_are_accepted(server: Running) -> None:
    """Some clients send such parameters with every request."""
    parameters = {
        "sequence_id": Parameter(int64_param=0),
        "sequence_start": Parameter(bool_param=False),
        "priority": Parameter(uint64_param=0),
        "timeout": Parameter(int64_param=0),
        "my_note": Parameter(string_param="ignored"),
    }
    assert floats(await server.inference.ModelInfer(raw_request(4, parameters=parameters)), 1).tolist() == [[4, 8]]


async def test_a_bad_image_fails_only_its_own_request(server: Running, engine: FakeEngine) -> None:
    engine.open.clear()
    first = asyncio.ensure_future(server.inference.ModelInfer(raw_request(1)))
    await engine.begun()
    mate = asyncio.ensure_future(server.inference.ModelInfer(raw_request(2, 3)))
    bad = of_files(png(4), b"no image")
    assert isinstance(await error_of(server.inference.ModelInfer(bad)), InvalidInput)
    engine.open.set()
    await first
    assert floats(await mate, 1).tolist() == [[2, 4], [3, 6]]


async def test_rows_of_several_requests_share_a_batch(server: Running, engine: FakeEngine) -> None:
    engine.open.clear()
    first = asyncio.ensure_future(server.vision.Classify(classify_request(9)))
    await engine.begun()
    calls = [
        asyncio.ensure_future(server.inference.ModelInfer(raw_request(*rows))) for rows in ((1, 2, 3), (4, 5, 6, 7))
    ]
    await server.wait_for_queue_depth(7)
    engine.open.set()
    answers = await asyncio.gather(*calls)
    await first
    assert [len(batch) for batch in engine.batches] == [1, 4, 3]
    assert [floats(answer, 1)[:, 0].tolist() for answer in answers] == [[1, 2, 3], [4, 5, 6, 7]]


async def test_each_image_of_a_request_takes_a_place(engine: FakeEngine) -> None:
    async with running_server(engine, max_queue=3) as server:
        assert type(await error_of(server.inference.ModelInfer(raw_request(1, 2, 3, 4)))) is Overloaded
        assert floats(await server.inference.ModelInfer(raw_request(1, 2, 3)), 1)[:, 0].tolist() == [1, 2, 3]


async def test_the_parameter_timeout_is_a_deadline(server: Running, engine: FakeEngine) -> None:
    engine.open.clear()
    first = asyncio.ensure_future(server.inference.ModelInfer(raw_request(1)))
    await engine.begun()
    hurried = raw_request(2, parameters={"timeout": Parameter(int64_param=1)})
    late = asyncio.ensure_future(error_of(server.inference.ModelInfer(hurried)))
    mate = asyncio.ensure_future(server.inference.ModelInfer(raw_request(3)))
    await server.wait_for_queue_depth(2)
    engine.open.set()
    assert (await late).status is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.gather(first, mate)
    assert all(2 not in batch for batch in engine.batches)


async def test_statistics_count_requests_images_and_runs(server: Running, engine: FakeEngine) -> None:
    service = server.inference
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


async def test_a_generic_client_needs_only_reflection(server: Running) -> None:
    """grpcurl and ghz learn messages and methods from the server."""

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


async def test_an_error_that_quotes_a_long_name_keeps_its_status(server: Running) -> None:
    for name in ("ü" * 1300, "x" * 100_000):
        error = await error_of(server.inference.ModelInfer(raw_request(1, model_name=name)))
        assert type(error) is NotFound
        assert error.message.endswith("…")


async def test_the_newest_version_may_be_called_minus_one(server: Running) -> None:
    answer = await server.inference.ModelInfer(raw_request(3, model_version="-1"))
    assert answer.model_version == "7"
