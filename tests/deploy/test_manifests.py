"""The manifests of every overlay are valid, and agree with each other and with the programs that they start."""

import os
import re
import subprocess
from pathlib import Path, PurePosixPath

import kubernetes_validate
import pytest
import yaml
from fakes.kubernetes_manifests import (
    OVERLAYS,
    ROOT,
    Document,
    arguments_of,
    containers,
    deployments,
    documents,
    kustomized,
    of_kind,
    pods,
    port_numbers,
    programs,
    server_config,
    worker_config,
)
from zfserve import channel
from zfserve_engines.opening import Phase
from zfserve_protos.methods import PROJECTION, VISION_SERVICE, WORKER_SERVICE
from zfserve_runtime.grpc import options as grpc_options
from zfserve_runtime.grpc.health import SERVER
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.models.startup_progress import phase_service

KUBERNETES = "1.37"
SERVER_NAMES = {SERVER, VISION_SERVICE, PROJECTION, *map(phase_service, Phase)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_documents_are_valid(overlay: str) -> None:
    plain = [document for document in documents(overlay) if "kserve.io" not in document["apiVersion"]]
    assert plain
    for document in (*plain, *deployments(overlay)):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_listens_where_the_manifest_says(overlay: str) -> None:
    ((pod, container),) = programs(overlay, "serve")
    config = server_config(container)
    assert config.host == config.metrics_host == "0.0.0.0"
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
    config, sought = worker_config(worker), server_config(server).worker_address
    assert config.metrics_host == "0.0.0.0"
    assert sought is not None
    if sought.startswith("unix:"):
        assert config.listen == sought
        program, *command = worker["livenessProbe"]["exec"]["command"]
        asked = arguments_of({"args": command})
        assert (program, asked.address, asked.service) == ("zfserve", sought, SERVER)
        assert "readinessProbe" not in worker, "it would take the classifying server down with it"
        folder = str(Path(sought.removeprefix("unix:")).parent)
        (volumes,) = {
            frozenset(mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == folder)
            for container in (server, worker)
        }
        assert len(volumes) == 1, "one volume, mounted by both"
        return
    name, port = sought.rsplit(":", 1)
    assert config.listen == f"0.0.0.0:{port}"
    assert config.allow_insecure, "it would refuse to listen there"
    assert port_numbers(worker) == {int(port), config.metrics_port}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(config.metrics_port)
    assert name in {service["metadata"]["name"] for service in of_kind(overlay, "Service")}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert worker[probe]["grpc"]["port"] == int(port)
        assert worker[probe]["grpc"].get("service", "") in {SERVER, WORKER_SERVICE}


def place_on_claim(pod: Document, container: Document, folder: Path) -> tuple[str, PurePosixPath]:
    """Returns the claim that holds `folder` of the container, and the path on it. Fails where it is not read-only."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    (mount,) = [mount for mount in container["volumeMounts"] if folder.is_relative_to(mount["mountPath"])]
    claim = volumes[mount["name"]]["persistentVolumeClaim"]
    assert mount["readOnly"] is claim["readOnly"] is True
    return claim["claimName"], PurePosixPath(mount.get("subPath", ""), folder.relative_to(mount["mountPath"]))


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
        assert "/tmp" in mounts
        assert container["resources"]["requests"]["cpu"]
        assert container["resources"]["requests"]["memory"]
        assert container["resources"]["limits"]["memory"]
        arguments = arguments_of(container)
        given = getattr(arguments, "model", None) or arguments.bundle
        folders = given if isinstance(given, list) else [given]
        models |= {place_on_claim(pod, container, Path(folder)) for folder in folders}
        if cache_folder := getattr(arguments, "engine_cache", None):
            assert str(cache_folder) in mounts
    (claim,) = of_kind(overlay, "PersistentVolumeClaim")
    assert models == {(claim["metadata"]["name"], PurePosixPath("zfnet"))}


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
        if container["args"][0] == "compile":
            continue
        config = server_config(container) if container["args"][0] == "serve" else worker_config(container)
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain_s = config.drain_delay + config.drain_grace
        assert pod["spec"]["terminationGracePeriodSeconds"] >= before_s + drain_s + 5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_callers_find_a_new_pod_before_the_next_old_one_goes(overlay: str) -> None:
    backoff_ms = max(
        dict(options)["grpc.max_reconnect_backoff_ms"]
        for options in (channel.channel_options("dns:///zfserve:8500", 1, None), grpc_options.worker_channel_options())
    )
    for deployment in of_kind(overlay, "Deployment"):  # KServe names its own Deployment
        assert deployment["spec"]["minReadySeconds"] > 1.2 * int(backoff_ms) / 1e3, "and 20 % by chance"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_meet_pods(overlay: str) -> None:
    labels = {name: pod["metadata"]["labels"].items() for name, pod in pods(overlay).items()}
    ports = {
        name: {
            port["name"]
            for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
            for port in container.get("ports", ())
        }
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
def test_a_policy_lets_the_servers_reach_the_workers_and_prometheus_reach_all(overlay: str) -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(overlay, "NetworkPolicy")}
    for pod, container in containers(overlay):
        if metrics := [port["name"] for port in container.get("ports", ()) if "metrics" in port["name"]]:
            (spec,) = [
                spec
                for spec in policies.values()
                if spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
            ]
            from_anywhere = {port["port"] for rule in spec["ingress"] if "from" not in rule for port in rule["ports"]}
            assert set(metrics) <= from_anywhere
    ((pod, container),) = programs(overlay, "serve")
    address = server_config(container).worker_address
    assert address is not None
    to_pods = [rule for rule in policies["zfserve-server"]["egress"] if "to" in rule]
    if address.startswith("unix:"):
        assert to_pods == []
        return
    ((_, worker),) = programs(overlay, "worker")
    (out,), (into, _) = to_pods, policies["zfserve-worker"]["ingress"]
    assert {port["port"] for port in out["ports"]} <= port_numbers(worker)
    assert out["to"] == [{"podSelector": policies["zfserve-worker"]["podSelector"]}]
    assert into["from"][0]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_autoscalers_ask_for_a_metric_that_there_is_and_nobody_else_says_how_many(overlay: str) -> None:
    families = {family.name for family in Metrics().registry.collect()}
    scalers = {
        scaler["spec"]["scaleTargetRef"]["name"]: scaler for scaler in of_kind(overlay, "HorizontalPodAutoscaler")
    }
    for scaler in scalers.values():
        assert {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]} <= families
    by_kserve = {f"{one['metadata']['name']}-predictor": one for one in of_kind(overlay, "InferenceService")}
    for name, service in by_kserve.items():
        for metric in service["spec"]["predictor"]["autoScaling"]["metrics"]:
            query = metric["external"]["metric"]["query"]
            (family,) = re.findall(r"zfserve_\w+", query)
            assert family in families
            assert f'namespace="{service["metadata"]["namespace"]}",pod=~"{name}-.*"' in query
    assert scalers.keys() | by_kserve.keys() == pods(overlay).keys()
    assert all("replicas" not in one["spec"] for one in deployments(overlay))


def test_the_docs_rule_for_prometheus_adapter_serves_the_autoscalers_metric() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    (rule,) = [
        rule
        for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
        for rule in (yaml.safe_load(block) or {}).get("rules", ())
    ]
    wanted = {
        metric["pods"]["metric"]["name"]
        for scaler in of_kind("cpu", "HorizontalPodAutoscaler")
        for metric in scaler["spec"]["metrics"]
    }
    assert {re.split(r"\W", rule["seriesQuery"])[0]} == wanted
    assert rule["metricsQuery"].startswith("sum("), "the metric has a series for each model"


def test_the_loader_writes_to_the_claim_that_is_served() -> None:
    (pod,) = kustomized(ROOT / "deploy" / "model-loader")
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    (claim,) = of_kind("cpu", "PersistentVolumeClaim")
    assert [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"]] == [
        {"claimName": claim["metadata"]["name"]}
    ]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    ((_, server),) = programs("cpu", "serve")
    assert pod["spec"]["containers"][0]["securityContext"] == server["securityContext"]


def server_with(overlay: str, components: list[str], folder: Path) -> Document:
    """Returns the server's pod in an overlay with these components added."""
    deploy = os.path.relpath((ROOT / "deploy").resolve(), folder.resolve())
    added = [f"{deploy}/{component}" for component in components]
    kustomization = {"resources": [f"{deploy}/overlays/{overlay}"], "components": added}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (deployment,) = [
        document
        for document in kustomized(folder)
        if document["metadata"]["name"] == "zfserve-server" and document["kind"] == "Deployment"
    ]
    kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    pod: Document = deployment["spec"]["template"]["spec"]
    return pod


def test_the_component_for_tokens_has_them_asked_for(tmp_path: Path) -> None:
    pod = server_with("cpu", ["tls", "tokens"], tmp_path)
    (container,) = pod["containers"]
    config = server_config(container)
    assert config.tokens is not None
    assert config.tls is not None, "a token is not to be read on its way"
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "tokens"]
    assert Path(mount["mountPath"]) == config.tokens.parent
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "tokens"]
    # The key in the Secret becomes the file's name. The component says how to make the Secret.
    told = (ROOT / "deploy" / "tokens" / "kustomization.yaml").read_text()
    assert f"secret generic {volume['secret']['secretName']} --from-file={config.tokens.name}" in told


@pytest.mark.parametrize("overlay", sorted({*OVERLAYS} - {"kserve"}))
def test_the_component_for_tls_encrypts_and_asks_encrypted(overlay: str, tmp_path: Path) -> None:
    (container,) = server_with(overlay, ["tls"], tmp_path)["containers"]
    config = server_config(container)
    assert not config.allow_insecure
    assert config.tls is not None
    files = {config.tls.certificate, config.tls.key}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        plain = server_of(overlay)[probe]
        assert "grpc" not in container[probe]
        program, *command = container[probe]["exec"]["command"]
        asked = arguments_of({"args": command})
        assert (program, command[0]) == ("zfserve", "health")
        assert asked.service == plain["grpc"].get("service", "")
        files.add(Path(asked.tls_ca))
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "tls"]
    assert {file.parent for file in files} == {Path(mount["mountPath"])}


@pytest.mark.parametrize("component", ["tls", "tokens", "observability/tracing"])
def test_a_component_that_finds_no_server_fails(component: str, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        server_with("kserve", [component], tmp_path)
    assert "no resource matches" in failed.value.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_service_sets_what_a_program_reads(overlay: str) -> None:
    for pod in pods(overlay).values():
        assert pod["spec"]["enableServiceLinks"] is False
    for service in of_kind(overlay, "InferenceService"):
        assert service["spec"]["predictor"]["enableServiceLinks"] is False


def server_of(overlay: str) -> Document:
    ((_, container),) = programs(overlay, "serve")
    return container
