"""The Open Inference Protocol describes the server and its models, and refuses the methods that are not served."""

import asyncio

from fakes.inference_requests import Parameter, error_of, output, raw_request
from fakes.model_repository import FakeModelRepository
from fakes.serving import CLASSES, MANIFEST, FakeEngine, Running, running_server
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_protos.v1 import zfserve_pb2 as vision_pb
from zfserve_runtime.bundle import BundleError
from zfserve_runtime.errors import Unimplemented


async def test_the_server_and_its_model_are_described(server: Running) -> None:
    service = server.inference
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
    repository, older, newer = FakeModelRepository(), FakeEngine(), FakeEngine()
    repository.put(MANIFEST, older)
    repository.put(MANIFEST.model_copy(update={"version": "8"}), newer)
    repository.put(MANIFEST.model_copy(update={"name": "bad"}), error=BundleError("its engine is stale"))
    async with running_server(
        repository=repository, strict_readiness=False, keep_versions=2, default_model="fake"
    ) as server:
        service = server.inference
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


async def test_a_network_without_features_has_one_output(repository: FakeModelRepository) -> None:
    repository.put(MANIFEST.model_copy(update={"feature_width": 0}), FakeEngine(feature_width=0))
    async with running_server(repository=repository) as server:
        service = server.inference
        metadata = await service.ModelMetadata(pb.ModelMetadataRequest(name="fake"))
        assert [each.name for each in metadata.outputs] == ["probabilities"]
        config = (await service.ModelConfig(pb.ModelConfigRequest(name="fake"))).config
        assert [each.name for each in config.output] == ["probabilities"]
        answer = await service.ModelInfer(raw_request(5, 6))
        assert [(each.name, list(each.shape)) for each in answer.outputs] == [("probabilities", [2, CLASSES])]
        error = await error_of(service.ModelInfer(raw_request(5, outputs=[output("features")])))
        assert error.message == "there is no output 'features', only probabilities"


async def test_a_network_with_a_fixed_batch_takes_one_image_at_a_time(repository: FakeModelRepository) -> None:
    engine = FakeEngine(max_batch_size=1)
    repository.put(MANIFEST.model_copy(update={"fixed_batch_size": 1}), engine)
    async with running_server(repository=repository) as server:
        service = server.inference
        assert (await service.ModelConfig(pb.ModelConfigRequest(name="fake"))).config.max_batch_size == 1
        engine.open.clear()
        calls = [asyncio.ensure_future(service.ModelInfer(raw_request(identity))) for identity in (5, 6, 7)]
        await server.wait_for_queue_depth(2)
        engine.open.set()
        await asyncio.gather(*calls)
        assert sorted(engine.batches) == [[5], [6], [7]]
        (counted,) = (await service.ModelStatistics(pb.ModelStatisticsRequest(name="fake"))).model_stats
        assert [(each.batch_size, each.compute_infer.count) for each in counted.batch_stats] == [(1, 3)]
        error = await error_of(service.ModelInfer(raw_request(5, 6)))
        assert error.message.endswith("with N = 1, because this model runs one image at a time")
        description = await server.vision.DescribeModel(vision_pb.DescribeModelRequest())
        assert (description.fixed_batch_size, description.engine.max_batch_size) == (1, 1)


async def test_unimplemented_methods_say_why(server: Running) -> None:
    service = server.inference
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
