"""This fake makes the manifests that KServe makes from a ServingRuntime and an InferenceService in Standard mode.

It follows the source in github.com/kserve/kserve. The keys are those of pkg/apis/serving/v1alpha1/
servingruntime_types.go and of v1beta1/component.go and predictor.go. The result is that of
pkg/controller/v1beta1/inferenceservice/reconcilers and pkg/webhook/admission/pod. Other tests check the pods and
containers by Kubernetes' own schema.
"""

import copy
from collections.abc import Iterable
from typing import Any

Document = dict[str, Any]

PROTOCOLS = {"v1", "v2", "grpc-v1", "grpc-v2"}
CONTAINER = "kserve-container"
MODEL_FOLDER = "/mnt/models"
CLAIM_SCHEME = "pvc://"

RUNTIME_POD_KEYS = {
    "containers", "volumes", "nodeSelector", "affinity", "tolerations", "labels", "annotations", "imagePullSecrets",
    "hostIPC",
}  # fmt: skip
RUNTIME_KEYS = RUNTIME_POD_KEYS | {
    "supportedModelFormats", "multiModel", "disabled", "protocolVersions", "workerSpec", "grpcEndpoint",
    "grpcDataEndpoint", "httpDataEndpoint", "replicas", "storageHelper", "builtInAdapter",
}  # fmt: skip
EXTENSION_KEYS = {
    "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling",
    "containerConcurrency", "timeout", "canaryTrafficPercent", "logger", "batcher", "labels", "annotations",
    "deploymentStrategy",
}  # fmt: skip
MODEL_KEYS = {"modelFormat", "runtime", "protocolVersion", "storageUri", "storage", "runtimeVersion"}
METRIC_SOURCES = {"Resource": "resource", "External": "external", "PodMetric": "podmetric"}


def deployment_of(documents: Iterable[Document]) -> Document | None:
    """Returns the predictor's Deployment; None where there is no InferenceService.

    Raises:
        ValueError: KServe would refuse the documents, or would ignore a part of them.
    """
    kinds = {document["kind"]: document for document in documents}
    if (service := kinds.get("InferenceService")) is None:
        return None
    runtime = kinds["ServingRuntime"]
    for fault in (*_runtime_faults(runtime), *_service_faults(service, runtime)):
        raise ValueError(fault)
    return _deployment(runtime, service)


def _runtime_faults(runtime: Document) -> Iterable[str]:
    spec = runtime["spec"]
    if runtime["apiVersion"] != "serving.kserve.io/v1alpha1":
        yield "a ServingRuntime is v1alpha1"
    if unknown := spec.keys() - RUNTIME_KEYS:
        yield f"a ServingRuntime has no {unknown}"
    if not set(spec["protocolVersions"]) <= PROTOCOLS:
        yield "KServe has no such protocol"
    if [container["name"] for container in spec["containers"]].count(CONTAINER) != 1:
        yield f"one container must be called {CONTAINER}"
    for model_format in spec["supportedModelFormats"]:
        if model_format.keys() - {"name", "version", "autoSelect", "priority"}:
            yield "a model format has unknown keys"


def _service_faults(service: Document, runtime: Document) -> Iterable[str]:
    annotations, predictor = service["metadata"]["annotations"], service["spec"]["predictor"]
    model = predictor["model"]
    if service["apiVersion"] != "serving.kserve.io/v1beta1":
        yield "an InferenceService is v1beta1"
    # KServe no longer knows the old name of the mode, RawDeployment. With it, KServe would expect Knative's scaling.
    if annotations["serving.kserve.io/deploymentMode"] != "Standard":
        yield "the deployment mode is not Standard"
    if annotations["serving.kserve.io/autoscalerClass"] not in {"hpa", "keda", "external", "none"}:
        yield "KServe has no such class of autoscaler"
    if unknown := model.keys() - MODEL_KEYS:
        yield f"a model has no {unknown} here"
    if model["runtime"] != runtime["metadata"]["name"]:
        yield "there is no such runtime"
    if model["protocolVersion"] not in runtime["spec"]["protocolVersions"]:
        yield "the runtime does not speak this protocol"
    formats = [(known["name"], known.get("version")) for known in runtime["spec"]["supportedModelFormats"]]
    if (model["modelFormat"]["name"], model["modelFormat"].get("version")) not in formats:
        yield "the runtime does not serve this format"
    if not 0 <= predictor["minReplicas"] <= predictor["maxReplicas"]:
        yield "minReplicas is larger than maxReplicas"
    for metric in predictor["autoScaling"]["metrics"]:
        source = metric[METRIC_SOURCES[metric["type"]]]
        if metric["type"] == "External" and "value" not in source["target"]:
            yield "the target of an external metric needs `value`: the controller reads nothing else of it"


def _deployment(runtime: Document, service: Document) -> Document:
    name = f"{service['metadata']['name']}-predictor"
    spec, predictor = copy.deepcopy(runtime["spec"]), copy.deepcopy(service["spec"]["predictor"])
    model = predictor.pop("model")
    labels = {**spec.get("labels", {}), **predictor.get("labels", {}), "app": f"isvc.{name}"}
    pod = {key: value for key, value in spec.items() if key in RUNTIME_POD_KEYS - {"labels", "annotations"}}
    pod |= {key: value for key, value in predictor.items() if key not in EXTENSION_KEYS}
    _mount_model(pod, model["storageUri"])
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": service["metadata"]["namespace"]},
        "spec": {
            "selector": {"matchLabels": {"app": f"isvc.{name}"}},
            "strategy": predictor["deploymentStrategy"],
            "template": {"metadata": {"labels": labels, "annotations": spec.get("annotations", {})}, "spec": pod},
        },
    }


def _mount_model(pod: Document, uri: str) -> None:
    """Mounts a volume claim read-only. For other URIs KServe adds an init container, which this fake does not."""
    if not uri.startswith(CLAIM_SCHEME):
        raise ValueError(f"{uri} is not a volume claim")
    claim, _, path = uri.removeprefix(CLAIM_SCHEME).partition("/")
    source = {"name": "kserve-pvc-source", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    pod.setdefault("volumes", []).append(source)
    (container,) = (container for container in pod["containers"] if container["name"] == CONTAINER)
    mount = {"name": source["name"], "mountPath": MODEL_FOLDER, "subPath": path, "readOnly": True}
    container["volumeMounts"].append(mount)
