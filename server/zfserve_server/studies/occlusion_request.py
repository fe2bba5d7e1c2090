"""Validates `Occlude` requests, and fills in what they leave open. `study_service` calls it."""

import math
from dataclasses import dataclass

from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import InvalidInput, OutOfRange
from zfserve_runtime.projection_validation import find_class

from zfserve_server.studies.layers import ReadLayer, default_layer
from zfserve_server.studies.limits import MAX_PLACES, MAX_SIGMA
from zfserve_server.studies.places import count_places, edges

_SHARE = 4
"""The square has a quarter of the shorter side by default, and its places are a quarter of the square apart."""


@dataclass(frozen=True)
class OcclusionSettings:
    """Holds what an `Occlude` request asks for.

    Attributes:
        request: the request, for its fill.
        tops, lefts: the first row, and the first column, of the square at each place.
        size: the side of the square in pixels.
        class_index: None stands for the most probable class.
        layer: the layer of the map. None: the request names none, and the network has no layer that can be read.
        map: None stands for the map with the strongest unit.
    """

    request: pb.OccludeRequest
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    size: int
    class_index: int | None
    layer: ReadLayer | None
    map: int | None


def validate_occlude_request(request: pb.OccludeRequest, manifest: Manifest) -> OcclusionSettings:
    """Returns what the request asks for. Refuses a request that does not fit the model, before any work is done.

    Raises:
        InvalidInput: the square is larger than the input, there are too many places, or the fill is no fill.
        NotFound: the model has no such layer or class.
        OutOfRange: the layer has no such map.
        BundleOutdated: the bundle does not say where its layers are.
    """
    height, width = manifest.input.height, manifest.input.width
    shorter = min(height, width)
    size = request.size or max(1, shorter // _SHARE)
    stride = request.stride or max(1, size // _SHARE)
    if size > shorter:
        raise InvalidInput(
            f"a square of {size} pixels does not fit the model's input of {height} x {width}; choose 1 to {shorter}",
            field="size",
        )
    places = count_places(height, width, size, stride)
    if places > MAX_PLACES:
        raise InvalidInput(
            f"a stride of {stride} makes {places:,} places and {MAX_PLACES:,} are allowed; choose a larger stride",
            field="stride",
        )
    _check_fill(request)
    layer = default_layer(request.layer, manifest, "last")
    return OcclusionSettings(
        request,
        edges(height, size, stride),
        edges(width, size, stride),
        size,
        find_class(request.class_name, manifest, "class_name"),
        layer,
        _check_map(request.map, layer) if request.HasField("map") else None,
    )


def _check_map(index: int, layer: ReadLayer | None) -> int:
    if layer is None:
        raise InvalidInput("this network has no layer that can be read; leave map out", field="map")
    if index >= layer.channels:
        raise OutOfRange(f"{layer.name} has the maps 0 to {layer.channels - 1}; {index} is not among them", field="map")
    return index


def _check_fill(request: pb.OccludeRequest) -> None:
    colour, sigma = request.colour, request.blur.sigma
    for name in ("red", "green", "blue"):
        if (value := getattr(colour, name)) > 255:
            raise InvalidInput(f"colour.{name} is {value}; choose 0 to 255", field=f"colour.{name}")
    if not (math.isfinite(sigma) and 0 <= sigma <= MAX_SIGMA):
        raise InvalidInput(f"blur.sigma is {sigma:g}; choose a number above 0, up to {MAX_SIGMA:g}", field="blur.sigma")
