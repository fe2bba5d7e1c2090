"""The registry finds models by name and version. Its error for an unknown name lists the models that exist."""

import pytest
from fakes.serving import MANIFEST, FakeEngine, Running, classify_request
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import NotFound, Starting
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.admission.admission import Admission
from zfserve_server.batching.batcher import Batcher
from zfserve_server.models.engine_choice import EngineChoice
from zfserve_server.models.registry import ModelRegistry, ModelState, ModelStatus
from zfserve_server.models.served_model import ServedModel


def served(name: str, version: str) -> ServedModel:
    manifest = MANIFEST.model_copy(update={"name": name, "version": version})
    engine = FakeEngine()
    metrics = Metrics().of_model(name, version)
    batcher = Batcher([engine], (8, 8, 3), metrics, lambda: None)
    return ServedModel(
        manifest, EngineChoice("onnx-cpu", [engine]), batcher, Admission(4, batcher.service_rate), metrics, 0.0
    )


@pytest.fixture
def models() -> ModelRegistry:
    models = ModelRegistry(lambda: Starting("the service is starting"))
    for name, version in (("birds", "1"), ("fish", "5"), ("birds", "2")):
        models.add(served(name, version))
    return models


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (("", ""), ("birds", "2")),
        (("birds", "1"), ("birds", "1")),
        (("fish", ""), ("fish", "5")),
        (("", "1"), ("birds", "1")),
    ],
)
def test_the_first_name_and_the_newest_version_are_the_defaults(
    models: ModelRegistry, wanted: tuple[str, str], found: tuple[str, str]
) -> None:
    manifest = models.find(*wanted).manifest
    assert (manifest.name, manifest.version) == found
    assert len(models) == 3


@pytest.mark.parametrize(
    ("wanted", "field", "says"),
    [(("bird", ""), "model.name", "birds, fish"), (("fish", "1"), "model.version", "only in 5")],
)
def test_the_error_for_an_unknown_model_lists_the_models_that_are_served(
    models: ModelRegistry, wanted: tuple[str, str], field: str, says: str
) -> None:
    with pytest.raises(NotFound, match=says) as refused:
        models.find(*wanted)
    assert refused.value.field == field


def test_before_the_first_model_the_error_says_that_the_service_starts() -> None:
    with pytest.raises(Starting):
        ModelRegistry(lambda: Starting("the service is starting")).find()


def test_the_status_of_versions_that_do_not_serve(models: ModelRegistry) -> None:
    loading = ModelStatus("birds", "10", ModelState.LOADING, "compiling")
    failed = ModelStatus("fish", "6", ModelState.FAILED, "model.onnx is missing")
    for status in (loading, failed):
        models.set_status(status)
    listed = [(status.name, status.version, status.state, status.is_default) for status in models.statuses()]
    assert listed == [
        ("birds", "10", "loading", False),
        ("birds", "2", "ready", True),
        ("birds", "1", "ready", False),
        ("fish", "6", "failed", False),
        ("fish", "5", "ready", False),
    ]
    with pytest.raises(Starting, match="birds 10 is being loaded"):
        models.find("birds", "10")
    with pytest.raises(NotFound, match=r"fish 6 cannot be served: model\.onnx is missing"):
        models.find("fish", "6")
    models.add(served("birds", "10"))
    assert models.find().manifest.version == "10"
    models.clear_status(loading)  # no effect: the version is ready by now
    models.clear_status(failed)
    assert [status.version for status in models.statuses()] == ["10", "2", "1", "5"]


def test_a_model_that_is_added_again_replaces_the_first(models: ModelRegistry) -> None:
    first, again = models.find("fish"), served("fish", "5")
    models.add(again)
    models.remove(first)
    assert models.find("fish") is again
    models.remove(again)
    with pytest.raises(NotFound, match="only birds"):
        models.find("fish")


async def test_a_request_can_name_its_model(server: Running) -> None:
    request = classify_request(3)
    request.model.CopyFrom(pb.ModelSelector(name=MANIFEST.name, version=MANIFEST.version))
    assert (await server.vision.Classify(request)).model.version == MANIFEST.version
