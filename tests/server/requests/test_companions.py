"""The companion models `NAME.project` and `NAME.explain` are called through a real channel, with a fake worker."""

import asyncio
import io
import struct
from typing import Any

import numpy as np
import pytest
from fakes.inference_requests import (
    Parameter,
    batch_of,
    error_of,
    floats,
    number_parameter,
    of_files,
    output,
    png,
    prefixed,
    raw_request,
    text_parameter,
    typed_request,
)
from fakes.model_repository import FakeModelRepository
from fakes.serving import FINGERPRINT, MANIFEST, SIDE, FakeEngine, FakeWorker, Running, projection_is, running_server
from PIL import Image
from zfserve_protos.inference import grpc_service_pb2 as oip
from zfserve_protos.inference import model_config_pb2
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import (
    DeadlineExceeded,
    Unimplemented,
    WorkerMismatch,
    WorkerUnavailable,
)

PROJECT, EXPLAIN = "fake.project", "fake.explain"


def tensors(answer: oip.ModelInferResponse) -> dict[str, Any]:
    """Returns the outputs of a raw answer: arrays, and lists of bytes."""
    read: dict[str, Any] = {}
    for index, (tensor, raw) in enumerate(zip(answer.outputs, answer.raw_output_contents, strict=True)):
        if tensor.datatype == "BYTES":
            read[tensor.name] = []
            while raw:
                (length,) = struct.unpack_from("<I", raw)
                read[tensor.name].append(raw[4 : 4 + length])
                raw = raw[4 + length :]
        elif tensor.datatype == "FP32":
            read[tensor.name] = floats(answer, index)
        else:
            read[tensor.name] = np.frombuffer(raw, "<i8").reshape(tuple(tensor.shape))
    return read


async def test_project_answers_tensors(paired_server: Running, worker: FakeWorker) -> None:
    parameters = {"layer": text_parameter("conv1"), "strongest": number_parameter(2)}
    answer = await paired_server.inference.ModelInfer(
        raw_request(263, model_name=PROJECT, id="a-1", parameters=parameters)
    )
    assert (answer.model_name, answer.model_version, answer.id) == (PROJECT, "7", "a-1")
    read = tensors(answer)
    assert (read["maps"].tolist(), read["activations"].tolist()) == ([0, 1], [1 + 7, 1 + 7])
    assert read["boxes"].tolist() == read["input_boxes"].tolist() == [[2, 0, 4, 8]] * 2
    assert read["pictures"] == [b"png", b"png"]
    assert (read["layer"], read["rule"], read["class_index"].tolist()) == ([b"conv1"], [b"paper"], [-1])
    (asked,) = worker.requests
    assert (asked.layer, asked.strongest, asked.format) == ("conv1", 2, pb.PICTURE_FORMAT_PNG)
    assert asked.pixels == batch_of(263).tobytes()


async def test_project_by_default(paired_server: Running, worker: FakeWorker) -> None:
    answer = await paired_server.inference.ModelInfer(raw_request(1, model_name=PROJECT))
    assert tensors(answer)["maps"].tolist() == [0, 1, 2, 3, 4, 5], "the layer has six maps"
    assert worker.requests[0].layer == "conv1", "the last layer that is no pool"


async def test_the_options_of_project(paired_server: Running, worker: FakeWorker) -> None:
    for parameters in (
        {"maps": text_parameter("5, 0"), "unit": text_parameter("1,2")},
        {"for_class": text_parameter("class 3"), "strongest": number_parameter(2), "unit": text_parameter("strongest")},
        {"for_class": text_parameter(""), "unit": text_parameter("whole")},
        {"strongest": Parameter(uint64_param=4), "unknown": number_parameter(1)},
    ):
        await paired_server.inference.ModelInfer(raw_request(1, model_name=PROJECT, parameters=parameters))
    maps, for_class, best, strongest = worker.requests
    assert (list(maps.selection.indices), maps.unit.position) == ([5, 0], pb.Position(row=1, column=2))
    assert for_class.for_class == pb.ClassMaps(class_name="class 3", count=2)
    assert best.for_class == pb.ClassMaps(count=6)
    assert best.unit.HasField("whole_map")
    assert strongest.strongest == 4


async def test_a_box_lies_on_the_photo_as_it_was_sent(paired_server: Running) -> None:
    wide = oip.ModelInferRequest(raw_input_contents=[prefixed(_png(2 * SIDE, SIDE))], model_name=PROJECT)
    wide.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    read = tensors(await paired_server.inference.ModelInfer(wide))
    assert read["boxes"][0].tolist() == [4, 0, 8, 8]
    assert read["input_boxes"][0].tolist() == [2, 0, 4, 8]


async def test_explain_answers_tensors(paired_server: Running, worker: FakeWorker) -> None:
    parameters = {
        "class_name": text_parameter("class 3"),
        "method": text_parameter("grad-cam"),
        "layer": text_parameter("pool1"),
    }
    request = of_files(png(3))
    request.model_name = EXPLAIN
    for name, value in parameters.items():
        request.parameters[name].CopyFrom(value)
    read = tensors(await paired_server.inference.ModelInfer(request))
    assert read["heatmap"].tolist() == [[0.25] * 3] * 2
    assert (read["overlay"], read["scale"].tolist()) == ([b"png"], [0.25])
    assert (read["class_index"].tolist(), read["label"], read["probability"].tolist()) == ([3], [b"class 3"], [0.625])
    assert read["served_probability"][0] == pytest.approx(0.55)
    assert read["served_precision"] == [b"fp32"]
    assert (read["score"].shape, read["baseline_score"].tolist()) == ((1,), [-1.5])
    assert read["completeness_gap"].tolist() == [0.125]
    assert (read["box"].tolist(), read["layer"]) == ([0, 0, 8, 8], [b"pool1"])
    (asked,) = worker.explain_requests
    assert (asked.layer, asked.class_name, asked.method) == ("pool1", "class 3", pb.EXPLANATION_METHOD_GRAD_CAM)


async def test_only_the_outputs_that_are_asked_for(paired_server: Running) -> None:
    request = raw_request(1, model_name=EXPLAIN, outputs=[output("box"), output("heatmap")])
    answer = await paired_server.inference.ModelInfer(request)
    assert [tensor.name for tensor in answer.outputs] == ["box", "heatmap"]


async def test_typed_requests_get_typed_answers(paired_server: Running) -> None:
    answer = await paired_server.inference.ModelInfer(typed_request(1, model_name=EXPLAIN))
    assert not answer.raw_output_contents
    contents = {tensor.name: tensor.contents for tensor in answer.outputs}
    assert list(contents["box"].int64_contents) == [0, 0, 8, 8]
    assert list(contents["heatmap"].fp32_contents) == [0.25] * 16
    assert list(contents["overlay"].bytes_contents) == [b"png"]


async def test_the_parameter_timeout_bounds_the_worker(paired_server: Running, worker: FakeWorker) -> None:
    worker.hangs_after = 0
    for name in (PROJECT, EXPLAIN):
        request = raw_request(1, model_name=name, parameters={"timeout": number_parameter(200_000)})
        assert isinstance(await error_of(paired_server.inference.ModelInfer(request)), DeadlineExceeded)


async def test_cancelling_stops_the_worker(paired_server: Running, worker: FakeWorker) -> None:
    worker.hangs_after = 1
    call = paired_server.inference.ModelInfer(raw_request(1, model_name=PROJECT))
    await asyncio.wait_for(worker.asked.wait(), 30)
    call.cancel()
    await asyncio.wait_for(worker.cancelled.wait(), 30)


async def test_metadata_and_configuration(paired_server: Running) -> None:
    for name, outputs in ((PROJECT, "pictures"), (EXPLAIN, "overlay")):
        metadata = await paired_server.inference.ModelMetadata(oip.ModelMetadataRequest(name=name))
        assert (metadata.name, list(metadata.versions), metadata.platform) == (name, ["7"], "zfserve_worker")
        assert {each.name: (each.datatype, list(each.shape)) for each in metadata.inputs} == {
            "pixels": ("UINT8", [1, SIDE, SIDE, 3]),
            "image": ("BYTES", [1, 1]),
        }
        assert outputs in {each.name for each in metadata.outputs}
        answer = await paired_server.inference.ModelConfig(oip.ModelConfigRequest(name=name))
        assert (answer.config.name, answer.config.max_batch_size) == (name, 0)
        assert [each.name for each in answer.config.output] == [each.name for each in metadata.outputs]
        assert [list(each.dims) for each in answer.config.output] == [list(each.shape) for each in metadata.outputs]
        assert answer.config.parameters["fingerprint"].string_value == FINGERPRINT
        assert answer.config.output[0].data_type in (model_config_pb2.TYPE_INT64, model_config_pb2.TYPE_FP32)


async def test_answers_have_the_outputs_of_the_metadata(paired_server: Running) -> None:
    for name in (PROJECT, EXPLAIN):
        metadata = await paired_server.inference.ModelMetadata(oip.ModelMetadataRequest(name=name))
        answer = await paired_server.inference.ModelInfer(raw_request(1, model_name=name))
        assert [(each.name, each.datatype) for each in answer.outputs] == [
            (each.name, each.datatype) for each in metadata.outputs
        ]
        for described, sent in zip(metadata.outputs, answer.outputs, strict=True):
            assert len(described.shape) == len(sent.shape)
            assert all(size in (-1, got) for size, got in zip(described.shape, sent.shape, strict=True))


async def index_of(server: Running, ready: bool = False) -> list[tuple[str, str, str]]:
    answer = await server.inference.RepositoryIndex(oip.RepositoryIndexRequest(ready=ready))
    return [(each.name, each.state, each.reason) for each in answer.models]


async def is_ready(server: Running, name: str) -> bool:
    answer = await server.inference.ModelReady(oip.ModelReadyRequest(name=name))
    return answer.ready


async def test_index_and_readiness_follow_the_worker(engine: FakeEngine, worker: FakeWorker, address: str) -> None:
    async with running_server(engine, worker=True, worker_address=address) as server:
        async with worker.listening(address):
            await projection_is(server, serving=True)
            assert await index_of(server) == [("fake", "READY", ""), (PROJECT, "READY", ""), (EXPLAIN, "READY", "")]
            assert await is_ready(server, PROJECT)
            assert await is_ready(server, EXPLAIN)
            assert not await is_ready(server, "nobody.project")
        await projection_is(server, serving=False)
        base, project, explain = await index_of(server)
        assert base == ("fake", "READY", "")
        assert (project[1], explain[1]) == ("UNAVAILABLE", "UNAVAILABLE")
        assert "worker" in project[2]
        assert await index_of(server, ready=True) == [base]
        assert not await is_ready(server, PROJECT)
        refused = await error_of(server.inference.ModelInfer(raw_request(1, model_name=PROJECT)))
        assert isinstance(refused, WorkerUnavailable)


async def test_a_worker_with_other_weights(engine: FakeEngine, worker: FakeWorker, address: str) -> None:
    worker.fingerprint = "other"
    async with worker.listening(address), running_server(engine, worker=True, worker_address=address) as server:
        await server.wait_for_metric('zfserve_worker_pairing{state="mismatch"} 1.0')
        assert (await index_of(server))[1][:2] == (PROJECT, "UNAVAILABLE")
        refused = await error_of(server.inference.ModelInfer(raw_request(1, model_name=EXPLAIN)))
        assert isinstance(refused, WorkerMismatch)


async def test_a_server_without_a_worker_lists_no_companions(server: Running) -> None:
    assert await index_of(server) == [("fake", "READY", "")]
    assert not await is_ready(server, PROJECT)
    refused = await error_of(server.inference.ModelInfer(raw_request(1, model_name=PROJECT)))
    assert isinstance(refused, WorkerUnavailable)


async def test_a_network_that_cannot_be_explained(
    engine: FakeEngine, worker: FakeWorker, address: str, repository: FakeModelRepository
) -> None:
    repository.put(MANIFEST.model_copy(update={"attribution_obstacle": "the node x is in the way"}), engine)
    async with (
        worker.listening(address),
        running_server(repository=repository, worker=True, worker_address=address) as server,
    ):
        await projection_is(server, serving=True)
        assert [name for name, _, _ in await index_of(server)] == ["fake", PROJECT]
        assert not await is_ready(server, EXPLAIN)
        refused = await error_of(server.inference.ModelInfer(raw_request(1, model_name=EXPLAIN)))
        assert isinstance(refused, Unimplemented)
        assert "the node x" in refused.message


async def test_a_model_whose_own_name_ends_like_a_companions(
    engine: FakeEngine, worker: FakeWorker, address: str, repository: FakeModelRepository
) -> None:
    repository.put(MANIFEST.model_copy(update={"name": "my.project"}), engine)
    async with (
        worker.listening(address),
        running_server(repository=repository, worker=True, worker_address=address) as server,
    ):
        await projection_is(server, serving=True)
        answer = await server.inference.ModelInfer(raw_request(3, model_name="my.project"))
        assert [each.name for each in answer.outputs] == ["probabilities", "features"]
        answer = await server.inference.ModelInfer(raw_request(3, model_name="my.project.project"))
        assert answer.outputs[0].name == "maps"


async def test_a_companion_has_no_statistics(paired_server: Running) -> None:
    call = paired_server.inference.ModelStatistics(oip.ModelStatisticsRequest(name=PROJECT))
    assert "VisionService/Project" in (await error_of(call)).message


async def test_its_requests_are_counted_as_those_of_the_method(paired_server: Running) -> None:
    await paired_server.inference.ModelInfer(raw_request(1, model_name=PROJECT))
    await error_of(paired_server.inference.ModelInfer(raw_request(1, 2, model_name=EXPLAIN)))
    await paired_server.inference.ModelInfer(raw_request(1))
    metrics = await paired_server.wait_for_metric(
        'method="/inference.GRPCInferenceService/ModelInfer",status="OK"} 1.0'
    )
    for counted in ('Project",status="OK"} 1.0', 'Explain",status="INVALID_ARGUMENT"} 1.0'):
        assert f'zfserve_requests_total{{method="/zfserve.v1.VisionService/{counted}' in metrics
    assert 'ModelInfer",status="INVALID_ARGUMENT"' not in metrics


async def test_a_stream_may_hold_requests_to_models_and_companions(paired_server: Running) -> None:
    call = paired_server.inference.ModelStreamInfer()
    for request in (raw_request(3), raw_request(3, model_name=EXPLAIN), raw_request(1, 2, model_name=PROJECT)):
        await call.write(request)
    await call.done_writing()
    answers = [answer async for answer in call]
    assert [answer.infer_response.model_name for answer in answers] == ["fake", EXPLAIN, PROJECT]
    assert "N = 1" in answers[2].error_message
    assert answers[1].infer_response.parameters["triton_final_response"].bool_param


def _png(width: int, height: int) -> bytes:
    opened = io.BytesIO()
    Image.new("RGB", (width, height)).save(opened, "PNG")
    return opened.getvalue()
