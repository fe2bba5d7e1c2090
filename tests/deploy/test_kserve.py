"""These tests hold what the overlay for KServe adds. It passes the tests of the other overlays too."""

import copy
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest
from fakes.kserve import CONTAINER, deployment_of
from fakes.kubernetes_manifests import documents, of_kind, programs, server_config

Document = dict[str, Any]


def test_kserve_routes_to_the_grpc_port() -> None:
    ((_, container),) = programs("kserve", "serve")
    assert container["name"] == CONTAINER
    first = container["ports"][0]
    assert (first["name"], first["containerPort"]) == ("h2c", server_config(container).port)
    (service,) = of_kind("kserve", "InferenceService")
    bundle = PurePosixPath(service["spec"]["predictor"]["model"]["storageUri"].removeprefix("pvc://")).name
    assert service["metadata"]["name"] == bundle, "the name that clients of the protocol ask for"


def test_the_runtime_of_kserve_runs_as_the_servers_of_the_other_overlays_do() -> None:
    ((_, plain),), ((_, under_kserve),) = programs("cpu", "serve"), programs("kserve", "serve")
    for key in (
        "startupProbe",
        "readinessProbe",
        "livenessProbe",
        "lifecycle",
        "resources",
        "securityContext",
        "image",
    ):
        assert under_kserve[key] == plain[key]
    differing = {"model"}
    assert {
        name: value for name, value in server_config(under_kserve).model_dump().items() if name not in differing
    } == {name: value for name, value in server_config(plain).model_dump().items() if name not in differing}


def scale_by_an_average(runtime: Document, service: Document) -> None:
    target = service["spec"]["predictor"]["autoScaling"]["metrics"][0]["external"]["target"]
    target["averageValue"] = target.pop("value")


def misspell_a_key(runtime: Document, service: Document) -> None:
    runtime["spec"]["protocolVersion"] = ["grpc-v2"]


def speak_another_protocol(runtime: Document, service: Document) -> None:
    service["spec"]["predictor"]["model"]["protocolVersion"] = "v2"


def rename_the_runtime(runtime: Document, service: Document) -> None:
    runtime["metadata"]["name"] = "other"


@pytest.mark.parametrize("spoil", [scale_by_an_average, misspell_a_key, speak_another_protocol, rename_the_runtime])
def test_what_kserve_would_refuse_is_seen_here(spoil: Callable[[Document, Document], None]) -> None:
    spoiled = copy.deepcopy(documents("kserve"))
    kinds = {document["kind"]: document for document in spoiled}
    spoil(kinds["ServingRuntime"], kinds["InferenceService"])
    with pytest.raises(ValueError, match=r"runtime|ServingRuntime|target"):
        deployment_of(spoiled)
