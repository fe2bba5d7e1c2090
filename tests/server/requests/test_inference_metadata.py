"""The Open Inference Protocol describes the server and its models, and refuses the methods that are not served."""

from fakes.inference_requests import Parameter, error_of, output, raw_request
from fakes.model_repository import FakeModelRepository
from fakes.serving import CLASSES, MANIFEST, FakeEngine, Running, running_server
from zfserve_protos.inference import grpc_service_pb2 as pb
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
