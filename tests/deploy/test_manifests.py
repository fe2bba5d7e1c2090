"""The manifests of every overlay: valid Kubernetes, and at one with each other and with the programs they start."""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from zfserve_client.cli import COMMANDS
from zfserve_runtime.engine_catalogue import Phase
from zfserve_runtime.health import PROJECTION, SERVER, VISION_SERVICE, WORKER_SERVICE
from zfserve_runtime.metrics import Metrics
from zfserve_server.config import ServerConfig
from zfserve_server.serve_command import read_config
from zfserve_server.startup import phase_service

ROOT = Path(__file__).parent.parent.parent
OVERLAYS = sorted(path.name for path in (ROOT / "deploy" / "overlays").iterdir())
KUBERNETES = "1.37"
SERVER_NAMES = {SERVER, VISION_SERVICE, PROJECTION, *map(phase_service, Phase)}

Document = dict[str, Any]


@cache
def documents(overlay: str) -> list[Document]:
    kubectl, folder = Path(sys.executable).parent / "kubectl", ROOT / "deploy" / "overlays" / overlay
    command = [str(kubectl), "kustomize", str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(built.stdout))


def of_kind(overlay: str, kind: str) -> list[Document]:
    return [document for document in documents(overlay) if document["kind"] == kind]


def pods(overlay: str) -> dict[str, Document]:
    return {one["metadata"]["name"]: one["spec"]["template"] for one in of_kind(overlay, "Deployment")}


def containers(overlay: str) -> Iterator[tuple[Document, Document]]:
    """Each with the pod it is in."""
    for pod in pods(overlay).values():
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield pod, container


def arguments_of(container: Document) -> argparse.Namespace:
    """What the container's program understands of its arguments; ends the test where it would refuse them."""
    name, *rest = container["args"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    return parser.parse_args(rest)


def server_config(container: Document) -> ServerConfig:
    return read_config(vars(arguments_of(container)), {})


def port_numbers(container: Document) -> set[int]:
    return {port["containerPort"] for port in container.get("ports", ())}


def programs(overlay: str, command: str) -> list[tuple[Document, Document]]:
    return [(pod, container) for pod, container in containers(overlay) if container["args"][0] == command]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_documents_are_valid(overlay: str) -> None:
    assert documents(overlay)
    for document in documents(overlay):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_listens_where_the_manifest_says(overlay: str) -> None:
    ((pod, container),) = programs(overlay, "serve")
    config = server_config(container)
    assert config.host == "0.0.0.0"
    assert port_numbers(container) == {config.port, config.metrics_port}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(config.metrics_port)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == config.port
        assert container[probe]["grpc"].get("service", "") in SERVER_NAMES
    assert container["startupProbe"]["grpc"]["service"] == phase_service(Phase.READY)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_worker_listens_where_the_server_looks(overlay: str) -> None:
    ((_, server),) = programs(overlay, "serve")
    ((pod, worker),) = programs(overlay, "worker")
    arguments, sought = arguments_of(worker), server_config(server).worker_address
    assert sought is not None
    if sought.startswith("unix:"):
        assert arguments.listen == sought
        folder = str(Path(sought.removeprefix("unix:")).parent)
        (volumes,) = {
            frozenset(mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == folder)
            for container in (server, worker)
        }
        assert len(volumes) == 1, "one volume, mounted by both"
        return
    name, port = sought.rsplit(":", 1)
    assert arguments.listen == f"0.0.0.0:{port}"
    assert port_numbers(worker) == {int(port), arguments.metrics_port}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(arguments.metrics_port)
    assert name in {service["metadata"]["name"] for service in of_kind(overlay, "Service")}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert worker[probe]["grpc"]["port"] == int(port)
        assert worker[probe]["grpc"].get("service", "") in {SERVER, WORKER_SERVICE}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everyone_reads_the_same_model_and_writes_only_to_volumes(overlay: str) -> None:
    models = set()
    for pod, container in containers(overlay):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/models"]["readOnly"] is True
        assert "/tmp" in mounts
        assert container["resources"]["requests"]["memory"]
        assert container["resources"]["limits"]["memory"]
        arguments = arguments_of(container)
        models.add(str(getattr(arguments, "model", None) or getattr(arguments, "bundle", None)))
        if cache_folder := getattr(arguments, "engine_cache", None):
            assert str(cache_folder) in mounts
    assert models == {"/models/zfnet"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_compiled_engine_is_what_the_server_asks_for(overlay: str) -> None:
    ((_, server),) = programs(overlay, "serve")
    config = server_config(server)
    for _, container in programs(overlay, "compile"):
        arguments = arguments_of(container)
        assert (arguments.runtime, arguments.precision) == (config.engine, config.precision)
        assert Path(arguments.engine_cache) == config.engine_cache
        assert container["image"] == server["image"]
    assert bool(programs(overlay, "compile")) == config.engine.startswith("tensorrt")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grace_period_holds_the_drain(overlay: str) -> None:
    for pod, container in containers(overlay):
        arguments = arguments_of(container)
        if container["args"][0] == "compile":
            continue
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain_s = float(arguments.drain_grace)
        assert pod["spec"]["terminationGracePeriodSeconds"] >= before_s + drain_s + 5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_meet_pods(overlay: str) -> None:
    labels = {name: pod["metadata"]["labels"].items() for name, pod in pods(overlay).items()}
    ports = {
        name: {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        for name, pod in pods(overlay).items()
    }

    def meets(selector: dict[str, str]) -> str:
        (met,) = [name for name in labels if selector.items() <= labels[name]]
        return met

    for service in of_kind(overlay, "Service"):
        met = meets(service["spec"]["selector"])
        assert service["spec"]["clusterIP"] == "None", "a gRPC connection would pin all calls to one pod"
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports[met]
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        meets(budget["spec"]["selector"]["matchLabels"])
    for policy in of_kind(overlay, "NetworkPolicy"):
        met = meets(policy["spec"]["podSelector"]["matchLabels"])
        named = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert named <= ports[met]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_autoscaler_asks_for_a_metric_that_there_is(overlay: str) -> None:
    families = {family.name for family in Metrics().registry.collect()}
    (scaler,) = of_kind(overlay, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] in pods(overlay)
    assert {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]} <= families
