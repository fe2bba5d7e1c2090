"""Answers checked requests for projections and explanations: pixels go in, pictures come out.

Runs in the torch thread only.
"""

import hashlib
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from zfserve_model.explanation.attribution import ClassAttribution, GradCam, attribute_in_batches, grad_cam
from zfserve_model.explanation.deconvnet import (
    Position,
    Projection,
    StrongestUnit,
    Trace,
    UnitRule,
    WholeMap,
    project,
    strongest_maps,
    trace,
)
from zfserve_model.explanation.rules import ProjectionRule, projection_rule
from zfserve_model.graph.execution import move_graph
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import Bundle, InputSpec, LayerEntry, Manifest
from zfserve_runtime.errors import Unimplemented
from zfserve_runtime.projection_validation import find_class, find_explained_layer, find_layer, map_count
from zfserve_runtime.telemetry.metrics import Metrics, ModelMetrics
from zfserve_runtime.telemetry.tracing import note_model, span

from zfserve_worker.memory_limits import MemoryLimits
from zfserve_worker.network import LoadedNetwork, load_network
from zfserve_worker.pictures import Pixels, overlay_png, patch_png, projection_png
from zfserve_worker.trace_cache import TraceCache

CPU = torch.device("cpu")

_RULES = {
    "paper": pb.ProjectionRule.PROJECTION_RULE_PAPER,
    "extended": pb.ProjectionRule.PROJECTION_RULE_EXTENDED,
}


class Projector:
    """Projects and explains with one network, and caches the forward passes of the most recently used photos.

    Args:
        network: the network, on any device.
        limits: the limits of its memory.
        metrics: the metrics of the model.
        device: the device that computes.
    """

    def __init__(
        self, network: LoadedNetwork, limits: MemoryLimits, metrics: ModelMetrics, device: torch.device = CPU
    ) -> None:
        self.manifest = network.manifest
        self.metrics = metrics
        self._graph = move_graph(network.graph, device)
        self._device = device
        self._limits = limits
        self._traces = TraceCache(limits.cached_traces, limits.trace_bytes)
        self._rules: dict[str, ProjectionRule] = {}  # by tensor
        layers = self.manifest.layers
        all_bytes = sum(4 * layer.channels * layer.height * layer.width for layer in layers)
        # If there is room for all layers of all traces, one forward pass serves requests for any layer of a photo.
        self._traces_all_layers = all_bytes * limits.cached_traces <= limits.trace_bytes

    def project(self, request: worker_pb2.ProjectRequest) -> Generator[pb.ProjectResponse | None, None, None]:
        """Yields one response for each feature map. Each is computed when it is asked for.

        It also yields None between the batches of an attribution, so that other calls get their turn.

        Args:
            request: a request that `validate_projection_request` accepted, with as many pixels as the input has.

        Raises:
            Unimplemented: a node of the network is in the way.
        """
        began_s = time.perf_counter()
        layer = find_layer(request.layer, self.manifest)
        rule = self._projection_rule(layer)
        pixels = self._pixels(request.pixels)
        traced = self._trace(pixels, layer)
        selection = yield from self._select_maps(request, traced, layer)
        projections = project(
            traced, layer.tensor, selection.maps, selection.units, memory_bytes=self._limits.signal_bytes
        )
        for rank, index in enumerate(selection.maps):
            span_attributes: dict[str, str | int | float] = {"zfserve.layer": layer.name, "zfserve.map": index}
            with span("projection", span_attributes):
                projection = next(projections)
            with span("render", span_attributes):
                response = _projection_response(projection, pixels, request.format)
            response.rank, response.total = rank, len(selection.maps)
            if selection.for_class is not None:
                response.attribution = selection.attributions[rank]
                response.for_class.CopyFrom(selection.for_class)
            response.layer, response.rule = layer.name, _RULES[rule.rule]
            response.extended_nodes.extend(rule.nodes)
            response.model.CopyFrom(identity(self.manifest))
            self.metrics.projection_seconds.observe(time.perf_counter() - began_s)
            yield response
            began_s = time.perf_counter()

    def explain(self, request: worker_pb2.ExplainRequest) -> Generator[pb.ExplainResponse | None, None, None]:
        """Yields the explanation of one class, and None between the batches of its attribution.

        Args:
            request: a request that `validate_explanation_request` accepted, with as many pixels as the input has.
        """
        layer = find_explained_layer(request.layer, self.manifest)
        pixels = self._pixels(request.pixels)
        traced = self._trace(pixels, layer)
        began_s = time.perf_counter()
        wanted = find_class(request.class_name, self.manifest, "class_name")
        attributes: dict[str, str | int | float] = {"zfserve.layer": layer.name}
        with span("attribution", attributes):
            found: ClassAttribution | GradCam
            if request.method == pb.EXPLANATION_METHOD_GRAD_CAM:
                found = grad_cam(traced, layer.tensor, wanted)
            else:
                found = yield from attribute_in_batches(traced, layer.tensor, wanted, self._limits.point_bytes)
        with span("render", attributes):
            response = _explanation_response(found, pixels, request.method)
        response.for_class.CopyFrom(self._class_score(found.index, found.probability))
        response.layer = layer.name
        response.model.CopyFrom(identity(self.manifest))
        self.metrics.explanation_seconds.observe(time.perf_counter() - began_s)
        yield response

    def warm_up(self) -> None:
        """Projects one map of the last layer, so that the first caller does not wait for PyTorch's slow first run."""
        if not self.manifest.layers:
            return
        spec = self.manifest.input
        grey = bytes([128]) * (spec.height * spec.width * 3)
        request = worker_pb2.ProjectRequest(pixels=grey, layer=self.manifest.layers[-1].name, strongest=1)
        for _ in self.project(request):
            pass
        self._traces.clear()

    def _pixels(self, data: bytes) -> Pixels:
        note_model(self.manifest.name, self.manifest.version)
        return np.frombuffer(data, np.uint8).reshape(self.manifest.input.height, self.manifest.input.width, 3)

    def _projection_rule(self, layer: LayerEntry) -> ProjectionRule:
        """Returns the rule of a projection from that layer. Raises Unimplemented if no projection can reach the pixels.

        The manifest lists only layers that can be projected. But another release of zfserve may have written it.
        """
        rule = self._rules.get(layer.tensor)
        if rule is None:
            rule = self._rules[layer.tensor] = projection_rule(self._graph, layer.tensor)
        if rule.obstacle:
            raise Unimplemented(rule.obstacle, field="layer")
        return rule

    def _trace(self, pixels: Pixels, layer: LayerEntry) -> Trace:
        """Returns the forward pass of the photo with the activations of `layer`, from the cache if possible."""
        tensors = [each.tensor for each in self.manifest.layers] if self._traces_all_layers else [layer.tensor]

        def compute() -> Trace:
            began_s = time.perf_counter()
            with span("forward pass"):
                traced = trace(self._graph, _normalise(pixels, self.manifest.input).to(self._device), tensors)
            self.metrics.inference_seconds.observe(time.perf_counter() - began_s)
            return traced

        return self._traces.get((hashlib.sha256(pixels.data).digest(), *tensors), compute)

    def _select_maps(
        self, request: worker_pb2.ProjectRequest, traced: Trace, layer: LayerEntry
    ) -> Generator[None, None, "_MapSelection"]:
        units = _unit_rule(request.unit)
        match request.WhichOneof("maps"):
            case "selection":
                return _MapSelection(list(request.selection.indices), units)
            case "for_class":
                return (yield from self._maps_for_class(request, traced, layer, units))
            case _:
                return _MapSelection(strongest_maps(traced, layer.tensor, map_count(request, layer)), units)

    def _maps_for_class(
        self, request: worker_pb2.ProjectRequest, traced: Trace, layer: LayerEntry, units: UnitRule
    ) -> Generator[None, None, "_MapSelection"]:
        with span("attribution", {"zfserve.layer": layer.name}):
            wanted = find_class(request.for_class.class_name, self.manifest, "for_class.class_name")
            attribution = yield from attribute_in_batches(traced, layer.tensor, wanted, self._limits.point_bytes)
        maps = attribution.leading_maps(map_count(request, layer))
        if isinstance(units, StrongestUnit):
            units = attribution.leading_units(maps)
        score = self._class_score(attribution.index, attribution.probability)
        return _MapSelection(maps, units, score, attribution.maps[maps].tolist())

    def _class_score(self, index: int, probability: float) -> pb.ClassScore:
        entry = self.manifest.classes[index]
        return pb.ClassScore(label=entry.label, class_id=entry.class_id, index=index, probability=probability)


class _MapSelection(NamedTuple):
    """Holds the maps and units to project.

    Attributes:
        maps: indices of the feature maps, in the order of the responses.
        units: says which unit of each map to project.
        for_class: the class whose leading maps these are; None if the request names no class.
        attributions: the part of the class's score that each of `maps` adds; empty without a class.
    """

    maps: list[int]
    units: UnitRule
    for_class: pb.ClassScore | None = None
    attributions: Sequence[float] = ()


def open_projector(bundle: Bundle, limits: MemoryLimits, metrics: Metrics, device: torch.device = CPU) -> Projector:
    """Loads the network of the bundle. Returns its projector, warmed up.

    Args:
        bundle: the bundle of the network.
        limits: the limits of its memory.
        metrics: the metrics of the process.
        device: the device that computes.

    Raises:
        BundleError: the graph cannot be loaded, or the manifest describes another network.
    """
    network = load_network(bundle)
    of_model = metrics.of_model(bundle.manifest.name, bundle.manifest.version)
    projector = Projector(network, limits, of_model, device)
    projector.warm_up()
    return projector


def identity(manifest: Manifest) -> pb.ModelIdentity:
    return pb.ModelIdentity(name=manifest.name, version=manifest.version, fingerprint=manifest.fingerprint)


def _normalise(pixels: Pixels, spec: InputSpec) -> torch.Tensor:
    """Returns the pixels as float32 (3, height, width), normalised with the mean and deviation of `spec`.

    Args:
        pixels: uint8 (height, width, 3), RGB.
    """
    scaled = torch.from_numpy(pixels.astype(np.float32) / 255)
    return ((scaled - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(2, 0, 1).contiguous()


def _unit_rule(rule: pb.UnitRule) -> UnitRule:
    match rule.WhichOneof("rule"):
        case "position":
            return Position(rule.position.row, rule.position.column)
        case "whole_map":
            return WholeMap()
        case _:
            return StrongestUnit()


def _projection_response(
    projection: Projection, pixels: Pixels, picture_format: pb.PictureFormat.ValueType
) -> pb.ProjectResponse:
    window, projected = projection.window, projection.pixels.cpu()
    response = pb.ProjectResponse(
        map=projection.map,
        activation=projection.activation,
        box=pb.Box(left=window.left, top=window.top, right=window.right, bottom=window.bottom),
        patch_png=patch_png(pixels, window),
    )
    if projection.unit is not None:
        response.unit.CopyFrom(pb.Position(row=projection.unit.row, column=projection.unit.column))
    if picture_format == pb.PICTURE_FORMAT_FLOAT32:
        _, height, width = projected.shape
        values = projected.numpy().astype("<f4", copy=False)
        response.float32.CopyFrom(pb.Float32Picture(height=height, width=width, data=values.tobytes()))
    else:
        response.png = projection_png(projected)
    return response


def _explanation_response(
    found: ClassAttribution | GradCam, pixels: Pixels, method: pb.ExplanationMethod.ValueType
) -> pb.ExplainResponse:
    values = found.heatmap.cpu().numpy().astype("<f4", copy=False)
    height, width = values.shape
    scale = float(np.abs(values).max())
    response = pb.ExplainResponse(
        method=method,
        heatmap=pb.HeatMap(height=height, width=width, data=values.tobytes()),
        score=found.score,
        overlay_png=overlay_png(pixels, values, scale),
        scale=scale,
    )
    if isinstance(found, ClassAttribution):
        response.baseline_score, response.completeness_gap = found.baseline_score, found.completeness_gap
    return response
