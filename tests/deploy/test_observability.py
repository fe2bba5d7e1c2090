"""The dashboard, the alerts and their components agree with the metrics, with each other and with docs/on-call.md."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import kubernetes_validate
import promql_parser
import pytest
import yaml
from fakes.kubernetes_manifests import kustomized
from prometheus_client.metrics import MetricWrapperBase
from zfserve_engines.opening import Phase
from zfserve_runtime.grpc.status import error_classes
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_runtime.telemetry.otlp import endpoint_in
from zfserve_server.worker.pairing import PairingState

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "observability"
ON_CALL = (ROOT / "docs" / "on-call.md").read_text()
ALERTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]["groups"][0]["rules"]

OF_TARGET = {"job", "instance"}
"""The labels that Prometheus adds to every target."""

VALUES = {
    "status": {code.name for code in grpc.StatusCode},
    "reason": {error.reason for error in error_classes()},
    "state": {state.name.lower() for state in PairingState},
    "phase": {phase.value for phase in Phase},
}


class Selector(NamedTuple):
    metric: str
    matchers: list[Any]


@cache
def labels_of_series() -> dict[str, frozenset[str]]:
    """Returns the labels of every series of server and worker by name, and of Prometheus' own `up`."""
    metrics = Metrics()
    known = {"up": frozenset[str]()} | {
        sample.name: frozenset[str]() for family in metrics.registry.collect() for sample in family.samples
    }
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            endings = {"counter": ("_total",), "histogram": ("_sum", "_count"), "gauge": ("",)}[family.type]
            known |= {family.name + ending: frozenset(metric._labelnames) for ending in endings}
            if family.type == "histogram":
                known[f"{family.name}_bucket"] = frozenset({*metric._labelnames, "le"})
    return known


def expressions() -> Iterator[tuple[str, str]]:
    """Yields the owner of each expression, and the expression as Grafana or the rules send it to Prometheus."""
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for alert in ALERTS:
        yield alert["alert"], alert["expr"]


def selectors(expression: Any) -> list[Selector]:
    found: list[Selector] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None, "a metric is named"
            found.append(Selector(node.name, node.matchers.matchers))

    promql_parser.walk(expression, visit)
    return found


def grouped_by(text: str) -> set[str]:
    lists = re.findall(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)", text)
    return {label.strip() for labels in lists for label in labels.split(",")} - {""}


@pytest.mark.parametrize(("title", "text"), list(expressions()))
def test_a_query_is_sound_and_asks_for_what_is_shown(title: str, text: str) -> None:
    found = selectors(promql_parser.parse(text))  # parse() refuses wrong syntax, functions and types
    assert found
    labels = set(OF_TARGET)
    for selector in found:
        assert selector.metric in labels_of_series(), f"there is no metric {selector.metric}"
        own = labels_of_series()[selector.metric] | OF_TARGET
        assert {matcher.name for matcher in selector.matchers} <= own, f"{selector.metric} has the labels {sorted(own)}"
        for matcher in selector.matchers:
            if matcher.name in VALUES:
                assert set(matcher.value.split("|")) <= VALUES[matcher.name]
        labels |= own
    assert grouped_by(text) <= labels


def test_a_wrong_query_is_seen() -> None:
    expression = promql_parser.parse("sum by (a) (rate(x[5m])) / on (b) (y > 0)")
    assert [selector.metric for selector in selectors(expression)] == ["x", "y"]
    assert grouped_by("sum by (a, le) (x) / on (b) group_left () y") == {"a", "le", "b"}
    for wrong in ("rate(x)", "sum by (a (x)", "quantile_of(x)"):
        with pytest.raises(ValueError, match=r".+"):
            promql_parser.parse(wrong)


def test_the_dashboard_is_the_generated_one() -> None:
    command = [sys.executable, str(ROOT / "tools" / "generate_dashboard.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert re.findall(r"^## (\w+)$", ON_CALL, re.MULTILINE) == names
    for alert in ALERTS:
        assert alert["labels"] in ({"severity": "page"}, {"severity": "ticket"})
        metrics = [selector.metric for selector in selectors(promql_parser.parse(alert["expr"]))]
        shown = {label for metric in metrics for label in labels_of_series()[metric]}
        told = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
        assert told <= (grouped_by(alert["expr"]) or shown | OF_TARGET), "a label that the alert does not have"
    sections = ON_CALL.split("\n## ")[1:]
    assert all("*Look:*" in section and "*Do:*" in section for section in sections)


def built(tmp_path: Path, *components: str, on: str = "overlays/cpu") -> list[dict[str, Any]]:
    """Builds an overlay with components. Both are paths in `deploy`."""
    deploy = os.path.relpath(ROOT / "deploy", tmp_path)
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{deploy}/{on}"],
        "components": [f"{deploy}/{component}" for component in components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return kustomized(tmp_path)


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [document["spec"]["template"] for document in documents if document["kind"] == "Deployment"]


def test_the_component_watches_every_pod_and_brings_the_dashboard(tmp_path: Path) -> None:
    documents = built(tmp_path, "observability")
    kinds = {document["kind"]: document for document in documents}
    assert kinds["PrometheusRule"]["spec"]["groups"][0]["rules"] == ALERTS
    (dashboard,) = [document for document in documents if document["kind"] == "ConfigMap"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["zfserve.json"])["uid"] == "zfserve"
    monitor = kinds["PodMonitor"]["spec"]
    ends = {end["port"] for end in monitor["podMetricsEndpoints"]}
    with_sidecar = pods(built(tmp_path, "observability", on="overlays/single-pod"))
    assert len(pods(documents)) == 2
    assert len(with_sidecar) == 1
    for pod in (*pods(documents), *with_sidecar):
        assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert pod["metadata"]["labels"][monitor["jobLabel"]].startswith("zfserve-")
        programs = (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ()))
        for program in programs:
            assert any("metrics" in port["name"] for port in program["ports"])
            assert len(ends & {port["name"] for port in program["ports"]}) == 1


@pytest.mark.parametrize(
    ("on", "components"),
    [
        ("overlays/cpu", ["observability/tracing"]),
        ("overlays/single-pod", ["observability/tracing"]),
        ("base", ["sidecar", "observability/tracing"]),  # single-pod adds the sidecar itself
    ],
)
def test_the_tracing_component_switches_traces_on_and_opens_the_way(
    tmp_path: Path, on: str, components: list[str]
) -> None:
    documents = built(tmp_path, *components, on=on)
    for document in documents:
        kubernetes_validate.validate(document, "1.37", strict=True)
    (policy,) = [document for document in documents if document["metadata"]["name"] == "zfserve-traces"]
    traced = []
    for pod in pods(documents):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            environment = {entry["name"]: entry.get("value", "") for entry in container["env"]}
            endpoint = endpoint_in(environment)
            assert endpoint is not None
            assert int(endpoint.rpartition(":")[2]) == policy["spec"]["egress"][0]["ports"][0]["port"]
            traced.append(container["args"][0])
    assert sorted(traced) == ["serve", "worker"]
