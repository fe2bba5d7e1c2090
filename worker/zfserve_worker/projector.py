"""Answers checked projection requests: pixels go in, rendered projections come out. Runs in the torch thread only."""

import hashlib
import io
import time
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from zfserve_model.chain_attribution import attribute
from zfserve_model.chain_deconvnet import (
    Position,
    Projection,
    StrongestUnit,
    Trace,
    UnitRule,
    WholeMap,
    Window,
    project,
    strongest_maps,
    trace,
)
from zfserve_model.checkpoint import CheckpointError, load_checkpoint, weights_fingerprint
from zfserve_model.network_layer_table import LayerRow, layer_table
from zfserve_model.networks import Network
from zfserve_model.render import render_projection
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import WEIGHTS, Bundle, BundleError, InputSpec, Manifest
from zfserve_runtime.projection_validation import find_class, find_layer, map_count
from zfserve_runtime.telemetry.metrics import Metrics, ModelMetrics
from zfserve_runtime.telemetry.tracing import note_model, span

Pixels = npt.NDArray[np.uint8]

CPU = torch.device("cpu")

_PNG_COMPRESSION = 1
"""The level of zlib. Measured: its default, 6, takes a third longer for 1 to 5 % fewer bytes."""


class Projector:
    """Projects feature maps of one network, and caches the forward passes of the most recently used images.

    Args:
        network: the network to project.
        manifest: the manifest of the network's bundle.
        cached_traces: the number of forward passes to keep, each about 15 MB of activations and switches for `zfnet`.
        metrics: the metrics of the model.
        device: the device that computes.
    """

    def __init__(
        self,
        network: Network,
        manifest: Manifest,
        cached_traces: int,
        metrics: ModelMetrics,
        device: torch.device = CPU,
    ) -> None:
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device
        self.manifest = manifest
        self.metrics = metrics
        self._cached_traces = cached_traces
        self._traces: OrderedDict[bytes, Trace] = OrderedDict()

    def project(self, request: worker_pb2.ProjectRequest) -> Generator[pb.ProjectResponse, None, None]:
        """Yields one response for each feature map. Each is computed when it is asked for.

        Args:
            request: a request that `validate_projection_request` accepted, with as many pixels as the input has.
        """
        began_s = time.perf_counter()
        spec = self.manifest.input
        pixels = np.frombuffer(request.pixels, np.uint8).reshape(spec.height, spec.width, 3)
        note_model(self.manifest.name, self.manifest.version)
        traced = self._trace(pixels)
        selection = self._select_maps(request, traced)
        projections = project(traced, request.layer, selection.maps, selection.units)
        for rank, index in enumerate(selection.maps):
            span_attributes: dict[str, str | int | float] = {"zfserve.layer": request.layer, "zfserve.map": index}
            with span("projection", span_attributes):
                projection = next(projections)
            with span("render", span_attributes):
                response = _response(projection, pixels, request.format)
            response.rank, response.total = rank, len(selection.maps)
            if selection.for_class is not None:
                response.attribution = selection.attributions[rank]
                response.for_class.CopyFrom(selection.for_class)
            response.model.CopyFrom(identity(self.manifest))
            self.metrics.projection_seconds.observe(time.perf_counter() - began_s)
            yield response
            began_s = time.perf_counter()

    def warm_up(self) -> None:
        """Projects one map of the last layer, so that the first caller does not wait for PyTorch's slow first run."""
        spec = self.manifest.input
        grey = bytes([128]) * (spec.height * spec.width * 3)
        request = worker_pb2.ProjectRequest(pixels=grey, layer=self.manifest.layers[-1].name, strongest=1)
        for _ in self.project(request):
            pass
        self._traces.clear()

    def _trace(self, pixels: Pixels) -> Trace:
        """Returns the forward pass of the image, from the cache if possible.

        Args:
            pixels: uint8 (height, width, 3), RGB.
        """
        key = hashlib.sha256(pixels.data).digest()
        if key not in self._traces:
            while len(self._traces) >= self._cached_traces:
                self._traces.popitem(last=False)
            began_s = time.perf_counter()
            with span("forward pass"):
                self._traces[key] = trace(self._network, _normalise(pixels, self.manifest.input).to(self._device))
            self.metrics.inference_seconds.observe(time.perf_counter() - began_s)
        self._traces.move_to_end(key)
        return self._traces[key]

    def _select_maps(self, request: worker_pb2.ProjectRequest, traced: Trace) -> "_MapSelection":
        units = _unit_rule(request.unit)
        match request.WhichOneof("maps"):
            case "selection":
                return _MapSelection(list(request.selection.indices), units)
            case "for_class":
                return self._maps_for_class(request, traced, units)
            case _:
                count = map_count(request, find_layer(request.layer, self.manifest))
                return _MapSelection(strongest_maps(traced, request.layer, count), units)

    def _maps_for_class(self, request: worker_pb2.ProjectRequest, traced: Trace, units: UnitRule) -> "_MapSelection":
        with span("attribution", {"zfserve.layer": request.layer}):
            wanted = find_class(request.for_class.class_name, self.manifest, "for_class.class_name")
            attribution = attribute(self._network, traced, request.layer, wanted)
        maps = attribution.leading_maps(map_count(request, find_layer(request.layer, self.manifest)))
        if isinstance(units, StrongestUnit):
            units = attribution.leading_units(maps)
        entry = self.manifest.classes[attribution.index]
        score = pb.ClassScore(
            label=entry.label, class_id=entry.class_id, index=attribution.index, probability=attribution.probability
        )
        return _MapSelection(maps, units, score, attribution.maps[maps].tolist())


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


def open_projector(bundle: Bundle, cached_traces: int, metrics: Metrics, device: torch.device = CPU) -> Projector:
    """Loads the network of the bundle. Returns its projector, warmed up.

    Args:
        bundle: the bundle of the network.
        cached_traces: the number of forward passes to keep.
        metrics: the metrics of the process.
        device: the device that computes.

    Raises:
        BundleError: the weights cannot be loaded, or the manifest describes other weights.
    """
    manifest = bundle.manifest
    try:
        network = load_checkpoint(bundle.folder / WEIGHTS).network
    except CheckpointError as error:
        raise BundleError(f"the bundle {bundle.folder} holds no usable weights: {error}") from error
    fingerprint = weights_fingerprint(network)
    if fingerprint != manifest.fingerprint:
        raise BundleError(
            f"the weights in {bundle.folder} have the fingerprint {fingerprint[:12]}, the manifest says "
            f"{manifest.fingerprint[:12]}; export the bundle again"
        )
    # Requests are checked against the layers of the manifest, so these must be the layers of the network.
    if [asdict(row) for row in layer_table(network)] != [
        layer.model_dump(include=set(LayerRow.__annotations__)) for layer in manifest.layers
    ]:
        raise BundleError(f"the manifest of {bundle.folder} describes other layers than its weights; export it again")
    of_model = metrics.of_model(manifest.name, manifest.version)
    projector = Projector(network, manifest, cached_traces, of_model, device)
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


def _response(projection: Projection, pixels: Pixels, picture_format: pb.PictureFormat.ValueType) -> pb.ProjectResponse:
    window, projected = projection.window, projection.pixels.cpu()
    response = pb.ProjectResponse(
        map=projection.map,
        activation=projection.activation,
        box=pb.Box(left=window.left, top=window.top, right=window.right, bottom=window.bottom),
        patch_png=_png(Image.fromarray(_patch(pixels, window))),
    )
    if projection.unit is not None:
        response.unit.CopyFrom(pb.Position(row=projection.unit.row, column=projection.unit.column))
    if picture_format == pb.PICTURE_FORMAT_FLOAT32:
        _, height, width = projected.shape
        values = projected.numpy().astype("<f4", copy=False)
        response.float32.CopyFrom(pb.Float32Picture(height=height, width=width, data=values.tobytes()))
    else:
        response.png = _png(render_projection(projected))
    return response


def _patch(pixels: Pixels, window: Window) -> Pixels:
    return pixels[window.top : window.bottom, window.left : window.right]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=_PNG_COMPRESSION)
    return buffer.getvalue()
