"""Builds the requests of both clients from their arguments. Only a caller that passes a numpy array needs numpy."""

import importlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import grpc
from PIL import Image, ImageOps
from zfserve_protos.v1 import zfserve_pb2

from zfserve.errors import InvalidInput
from zfserve.explanation import ExplanationMethod
from zfserve.results import ImageReference, Position

LAST = "last"
"""This names the last layer of the last stage, which every network has."""

STRONGEST = 9
"""`project` and `ablate` choose this many maps by default."""

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | ImageReference | Any
"""The methods take a photo in one of these forms:

- a path to a JPEG, PNG, WebP, BMP, TIFF or GIF file, as `str` or `Path`. The file is sent as it is.
- `bytes`: the content of such a file.
- a Pillow image. An RGB image is sent as pixels, and an image of another mode as a TIFF file.
- an array, uint8 (height, width, 3), RGB, of any size. It is a numpy array, or an object that has the buffer protocol
  or numpy's array interface.
- an `ImageReference` that `classify` returned. Only the model that returned it accepts it.
"""

UnitRule: TypeAlias = Literal["strongest", "whole"] | Position
"""Chooses the unit of a feature map to project.

- "strongest" is the unit with the highest activation. If the map was chosen for a class, it is the unit that adds most
  to the score of the class.
- "whole" is all units together.
- a `Position` is the unit at that place.
"""

PictureFormat: TypeAlias = Literal["png", "float32"]
"""Chooses the format of a projection: "png" is a picture scaled for the eye, and "float32" is the unscaled values."""


@dataclass(frozen=True)
class ForClass:
    """Selects the maps that add most to the score of a class.

    Attributes:
        name: the id or the label of the class. "" is the most probable class.
        count: the number of maps, at least 1.
    """

    name: str
    count: int


Maps: TypeAlias = int | Sequence[int] | ForClass
"""Selects the maps to project. An int n selects the n strongest maps, a sequence lists maps, and a `ForClass` selects
maps for a class."""

_Listed = TypeVar("_Listed")

METHODS = {
    "integrated-gradients": zfserve_pb2.EXPLANATION_METHOD_INTEGRATED_GRADIENTS,
    "grad-cam": zfserve_pb2.EXPLANATION_METHOD_GRAD_CAM,
}

_FORMATS = {"png": zfserve_pb2.PICTURE_FORMAT_PNG, "float32": zfserve_pb2.PICTURE_FORMAT_FLOAT32}


def classify_request(
    image: ImageSource, top_k: int | None, features: bool, max_bytes: int
) -> zfserve_pb2.ClassifyRequest:
    """Builds the request for the classes of one photo.

    Raises:
        InvalidInput: `image` cannot be read, is no image or is over `max_bytes`, or `top_k` is negative.
    """
    return zfserve_pb2.ClassifyRequest(
        image=image_message(image, max_bytes),
        top_k=None if top_k is None else unsigned(top_k, "top_k"),
        include_features=features,
    )


def project_request(
    image: ImageSource,
    layer: str,
    maps: Maps,
    unit: UnitRule,
    picture_format: PictureFormat,
    max_bytes: int,
) -> zfserve_pb2.ProjectRequest:
    """Builds the request for projections of one photo.

    Raises:
        InvalidInput: `image` cannot be read, is no image or is over `max_bytes`; a map, a count or a position is
            negative; or there is no such unit rule or format.
    """
    if picture_format not in _FORMATS:
        raise invalid(f'there is no picture format {picture_format!r}; give "png" or "float32"', "format")
    request = zfserve_pb2.ProjectRequest(
        image=image_message(image, max_bytes), layer=layer, unit=_unit_rule(unit), format=_FORMATS[picture_format]
    )
    match maps:
        case int():
            request.strongest = unsigned(maps, "strongest")
        case ForClass():
            if maps.count == 0:  # the server would take 0 for its default
                raise invalid("ask for at least one map", "for_class.count")
            request.for_class.count = unsigned(maps.count, "for_class.count")
            request.for_class.class_name = maps.name
        case _:
            # `SetInParent` also sends an empty selection. The server then refuses it, and does not choose nine maps.
            request.selection.SetInParent()
            request.selection.indices.extend(unsigned(index, "selection.indices") for index in maps)
    return request


def explain_request(
    image: ImageSource, layer: str, class_name: str, method: ExplanationMethod, max_bytes: int
) -> zfserve_pb2.ExplainRequest:
    """Builds the request for the explanation of one photo.

    Raises:
        InvalidInput: `image` cannot be read, is no image or is over `max_bytes`, or there is no such method.
    """
    if method not in METHODS:
        raise invalid(f"there is no method {method!r}; give {' or '.join(map(repr, METHODS))}", "method")
    return zfserve_pb2.ExplainRequest(
        image=image_message(image, max_bytes), layer=layer, class_name=class_name, method=METHODS[method]
    )


def choose_maps(strongest: int, maps: _Listed | None, for_class: str | None) -> int | _Listed | ForClass:
    """Combines the three arguments of `project`, or of `ablate`, that select maps.

    Raises:
        InvalidInput: both `maps` and `for_class` are given.
    """
    if for_class is None:
        return strongest if maps is None else maps
    if maps is not None:
        raise invalid("give maps, or a class to choose them for, but not both", "for_class")
    return ForClass(for_class, strongest)


def model_selector(model: str | None, version: str | None) -> zfserve_pb2.ModelSelector:
    """Builds the selector of a model. None leaves the choice to the server: its default model, its newest version."""
    return zfserve_pb2.ModelSelector(name=model or "", version=version or "")


def image_message(image: ImageSource, max_bytes: int) -> zfserve_pb2.Image:
    """Builds the message that holds the image or its reference.

    Raises:
        InvalidInput: `image` cannot be read, is no image, or is over `max_bytes`.
    """
    try:
        message = _convert(image, max_bytes)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow and numpy raise all of these
        what = image if isinstance(image, str | os.PathLike) else "the photo"
        raise invalid(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}", "image") from error
    _check_size(message.ByteSize(), max_bytes)
    return message


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise invalid(
            f"the photo takes {size:,} bytes, and the client sends at most {max_bytes:,}; "
            "scale it down or raise max_message_bytes",
            "image",
        )


def _convert(image: ImageSource, max_bytes: int) -> zfserve_pb2.Image:
    match image:
        case ImageReference():
            return zfserve_pb2.Image(reference=image.value)
        case str() | os.PathLike():
            file = Path(image)
            _check_size(file.stat().st_size, max_bytes)  # before reading, because a message cannot hold 2 GiB
            return zfserve_pb2.Image(encoded=file.read_bytes())
        case Image.Image():
            return _from_pillow(image)
    view = _buffer(image)
    _check_size(view.nbytes, max_bytes)
    if view.format == "B" and view.ndim == 1:
        return zfserve_pb2.Image(encoded=view.tobytes())
    if view.format == "B" and view.ndim == 3 and view.shape is not None and view.shape[2] == 3:
        height, width, _ = view.shape
        return zfserve_pb2.Image(raw=zfserve_pb2.RawPixels(width=width, height=height, data=view.tobytes()))
    raise invalid(
        f"an array must be uint8 (height, width, 3), RGB; this one is {view.format!r} {view.shape}", "image.raw"
    )


def _from_pillow(image: Image.Image) -> zfserve_pb2.Image:
    """Sends RGB as raw pixels, and every other mode as an uncompressed TIFF file. The server then treats palettes,
    alpha, CMYK and 16 bits as it does in a file."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB":
        pixels = zfserve_pb2.RawPixels(width=upright.width, height=upright.height, data=upright.tobytes())
        return zfserve_pb2.Image(raw=pixels)
    if "transparency" in upright.info:  # TIFF would lose it
        upright = upright.convert("RGBA")
    file = io.BytesIO()
    upright.save(file, "TIFF")
    return zfserve_pb2.Image(encoded=file.getvalue())


def _buffer(image: Any) -> memoryview:
    try:
        return memoryview(image)
    except TypeError:
        if not (hasattr(image, "__array_interface__") or hasattr(image, "__array__")):
            raise invalid(
                f"{type(image).__name__} is no image; give a path, bytes, a Pillow image or an array", "image"
            ) from None
    # An array without a buffer has numpy's array interface, so the caller has numpy.
    return memoryview(importlib.import_module("numpy").asarray(image))


def _unit_rule(unit: UnitRule) -> zfserve_pb2.UnitRule:
    match unit:
        case "strongest":
            return zfserve_pb2.UnitRule(strongest=zfserve_pb2.StrongestUnit())
        case "whole":
            return zfserve_pb2.UnitRule(whole_map=zfserve_pb2.WholeMap())
        case Position(row, column):
            row, column = unsigned(row, "unit.position.row"), unsigned(column, "unit.position.column")
            return zfserve_pb2.UnitRule(position=zfserve_pb2.Position(row=row, column=column))
    raise invalid(f'there is no unit rule {unit!r}; give "strongest", "whole" or a Position', "unit")


def unsigned(value: int, field: str) -> int:
    """Returns `value` if a message can hold it.

    Raises:
        InvalidInput: `value` is negative or too large.
    """
    if not 0 <= value < 2**32:
        raise invalid(f"{field} must be at least 0 and below 2**32, and {value} is not", field)
    return value


def invalid(message: str, field: str) -> InvalidInput:
    """Makes the error of an argument that is refused before anything is sent."""
    return InvalidInput(message, grpc.StatusCode.INVALID_ARGUMENT, field=field)
