"""Builds the requests of `activations`, `occlude`, `ablate` and `transform` for both clients.

Each function checks the arguments of one method and returns a request without photos and without a model. `with_photo`
and `with_photos` add them. A 0 that the server would take for its default is refused here.
"""

import math
import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

from zfserve_protos.v1 import zfserve_pb2

from zfserve.occlusion import Blur, Fill
from zfserve.requests import ForClass, ImageSource, choose_maps, image_message, invalid, unsigned
from zfserve.studies import ActivationForm, Border, Replacement, Resampling, TransformKind

FORMS = {
    "strongest": zfserve_pb2.ACTIVATION_FORM_STRONGEST,
    "maps": zfserve_pb2.ACTIVATION_FORM_MAPS,
    "grid": zfserve_pb2.ACTIVATION_FORM_GRID,
}
KINDS = {
    "vertical-translation": zfserve_pb2.TRANSFORM_KIND_VERTICAL_TRANSLATION,
    "horizontal-translation": zfserve_pb2.TRANSFORM_KIND_HORIZONTAL_TRANSLATION,
    "scale": zfserve_pb2.TRANSFORM_KIND_SCALE,
    "rotation": zfserve_pb2.TRANSFORM_KIND_ROTATION,
    "horizontal-flip": zfserve_pb2.TRANSFORM_KIND_HORIZONTAL_FLIP,
    "vertical-flip": zfserve_pb2.TRANSFORM_KIND_VERTICAL_FLIP,
    "hue": zfserve_pb2.TRANSFORM_KIND_HUE,
    "brightness": zfserve_pb2.TRANSFORM_KIND_BRIGHTNESS,
}
BORDERS = {
    "grey": zfserve_pb2.BORDER_GREY,
    "black": zfserve_pb2.BORDER_BLACK,
    "edge": zfserve_pb2.BORDER_EDGE,
    "reflect": zfserve_pb2.BORDER_REFLECT,
}
RESAMPLINGS = {
    "bilinear": zfserve_pb2.RESAMPLING_BILINEAR,
    "nearest": zfserve_pb2.RESAMPLING_NEAREST,
    "bicubic": zfserve_pb2.RESAMPLING_BICUBIC,
}
_REPLACEMENTS = {"zero": zfserve_pb2.ABLATION_REPLACEMENT_ZERO, "mean": zfserve_pb2.ABLATION_REPLACEMENT_MEAN}

Groups = Sequence[int | Sequence[int]]

_Enum = TypeVar("_Enum")
_PhotoRequest = TypeVar(
    "_PhotoRequest", zfserve_pb2.OccludeRequest, zfserve_pb2.AblateRequest, zfserve_pb2.TransformRequest
)


def activations_request(
    layers: str | Sequence[str], form: ActivationForm, grid: tuple[int, int] | None
) -> zfserve_pb2.ActivationsRequest:
    """Builds the request for the activations of layers.

    Raises:
        InvalidInput: there is no layer or no such form, or `grid` does not go with `form` or has a number below 1.
    """
    request = zfserve_pb2.ActivationsRequest(layers=[layers] if isinstance(layers, str) else layers)
    if not request.layers:
        raise invalid("name at least one layer", "layers")
    request.form = _chosen(form, FORMS, "form")
    if (grid is not None) != (form == "grid"):
        raise invalid('the form "grid" needs grid=(height, width), and no other form takes it', "grid_height")
    if grid is not None:
        request.grid_height, request.grid_width = (
            _positive(size, field) for size, field in zip(grid, ("grid_height", "grid_width"), strict=True)
        )
    return request


def occlude_request(
    size: int | None, stride: int | None, fill: Fill, class_name: str, layer: str, map_index: int | None
) -> zfserve_pb2.OccludeRequest:
    """Builds the request for an occlusion.

    Raises:
        InvalidInput: `size` or `stride` is below 1, `map_index` is negative, or there is no such fill.
    """
    request = zfserve_pb2.OccludeRequest(class_name=class_name, layer=layer)
    if size is not None:
        request.size = _positive(size, "size")
    if stride is not None:
        request.stride = _positive(stride, "stride")
    if map_index is not None:
        request.map = unsigned(map_index, "map")
    match fill:
        case "mean":
            request.photo_mean.SetInParent()
        case Blur(sigma):
            if not (math.isfinite(sigma) and sigma > 0):
                raise invalid(f"the sigma of a blur is a number above 0, and {sigma} is not", "blur.sigma")
            request.blur.sigma = sigma
        case (red, green, blue) if all(isinstance(value, int) and 0 <= value <= 255 for value in fill):
            request.colour.CopyFrom(zfserve_pb2.Colour(red=red, green=green, blue=blue))
        case _:
            raise invalid(f'there is no fill {fill!r}; give (red, green, blue) from 0 to 255, "mean" or a Blur', "fill")
    return request


def ablate_request(
    layer: str, strongest: int, groups: Groups | None, for_class: str | None, replacement: Replacement
) -> zfserve_pb2.AblateRequest:
    """Builds the request for an ablation.

    Raises:
        InvalidInput: both `groups` and `for_class` are given, a map or a count is negative, or there is no such
            replacement.
    """
    request = zfserve_pb2.AblateRequest(layer=layer)
    if isinstance(replacement, str):
        request.replacement = _chosen(replacement, _REPLACEMENTS, "replacement")
    else:
        request.replacement = zfserve_pb2.ABLATION_REPLACEMENT_VALUES
        request.values.extend(_finite(value, "values") for value in replacement)
    match choose_maps(strongest, groups, for_class):
        case int(count):
            request.strongest = unsigned(count, "strongest")
        case ForClass(name, count):
            request.for_class.CopyFrom(
                zfserve_pb2.ClassMaps(class_name=name, count=_positive(count, "for_class.count"))
            )
        case chosen:
            # `SetInParent` also sends an empty selection. The server then refuses it, and does not choose nine maps.
            request.groups.SetInParent()
            for group in chosen:
                maps = [group] if isinstance(group, int) else group
                request.groups.groups.add(indices=[unsigned(index, "groups.indices") for index in maps])
    return request


def transform_request(
    kind: TransformKind, steps: Sequence[float] | None, class_name: str, low_layer: str, pictures: bool
) -> zfserve_pb2.TransformRequest:
    """Builds the request for a sweep of transformations, without border and resampling (`with_rules`).

    Raises:
        InvalidInput: there is no such kind, `steps` is empty, or a step is no finite number.
    """
    request = zfserve_pb2.TransformRequest(class_name=class_name, low_layer=low_layer, include_pictures=pictures)
    request.kind = _chosen(kind, KINDS, "kind")
    if steps is not None:
        request.steps.extend(_finite(step, "steps") for step in steps)
        if not request.steps:
            raise invalid("give at least one step, or None for the default steps", "steps")
    return request


def with_rules(
    request: zfserve_pb2.TransformRequest, border: Border, resampling: Resampling
) -> zfserve_pb2.TransformRequest:
    """Adds the border rule and the resampling to the request.

    Raises:
        InvalidInput: there is no such border rule or resampling.
    """
    request.border = _chosen(border, BORDERS, "border")
    request.resampling = _chosen(resampling, RESAMPLINGS, "resampling")
    return request


def with_photo(
    request: _PhotoRequest, image: ImageSource, model: zfserve_pb2.ModelSelector, max_bytes: int
) -> _PhotoRequest:
    """Adds the photo and the model to the request.

    Raises:
        InvalidInput: `image` cannot be read, is no image or is over `max_bytes`.
    """
    request.image.CopyFrom(image_message(image, max_bytes))
    request.model.CopyFrom(model)
    return request


def with_photos(
    request: zfserve_pb2.ActivationsRequest,
    images: Iterable[ImageSource],
    model: zfserve_pb2.ModelSelector,
    max_bytes: int,
) -> zfserve_pb2.ActivationsRequest:
    """Adds the photos and the model to the request.

    Raises:
        InvalidInput: there is no photo, a photo cannot be read or is no image, or all together are over `max_bytes`.
    """
    if isinstance(images, str | bytes | os.PathLike):
        raise invalid("give a list of photos, also for one photo", "images")
    for image in images:
        request.images.append(image_message(image, max_bytes))
        if (size := request.ByteSize()) > max_bytes:
            raise invalid(
                f"the first {len(request.images)} photos take {size:,} bytes, and the client sends at most "
                f"{max_bytes:,} in one call; send fewer photos at once",
                "images",
            )
    if not request.images:
        raise invalid("give at least one photo", "images")
    request.model.CopyFrom(model)
    return request


def _chosen(name: str, table: dict[str, _Enum], field: str) -> _Enum:
    if name not in table:
        raise invalid(f"there is no {field} {name!r}; give one of {', '.join(map(repr, table))}", field)
    return table[name]


def _positive(value: int, field: str) -> int:
    if value == 0:  # the server would take 0 for its default
        raise invalid(f"{field} must be at least 1", field)
    return unsigned(value, field)


def _finite(value: float, field: str) -> float:
    if not math.isfinite(value):
        raise invalid(f"every number of {field} must be finite, and {value} is not", field)
    return value
