"""Validates projection requests. The server and the worker apply the same rules."""

from collections.abc import Sequence

from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2

from zfserve_runtime.bundle import LayerEntry, Manifest
from zfserve_runtime.errors import InvalidInput, NotFound, OutOfRange

_DEFAULT_COUNT = 9
"""The number of maps if the request does not give one."""

MAX_LISTED_CLASSES = 20
"""The largest number of classes that an error names."""

AnyProjectRequest = pb.ProjectRequest | worker_pb2.ProjectRequest


def validate_projection_request(request: AnyProjectRequest, manifest: Manifest) -> None:
    """Refuses a request that does not fit the model, before any work is done.

    Raises:
        NotFound: the model has no such layer or class.
        OutOfRange: the layer has no such map or unit, or fewer maps than requested.
        InvalidInput: the request names no maps or too many, a label that several classes share, or an unknown format.
    """
    layer = manifest.layer(request.layer)
    if layer is None:
        names = ", ".join(entry.name for entry in manifest.layers)
        raise NotFound(f"there is no layer {request.layer[:64]!r}; choose one of {names}", field="layer")
    if request.WhichOneof("maps") == "selection":
        _check_selection(request.selection.indices, layer)
    elif request.WhichOneof("maps") == "strongest":
        _check_count(request.strongest, layer, "strongest")
    elif request.WhichOneof("maps") == "for_class":
        find_class(request.for_class.class_name, manifest)
        if request.for_class.count:
            _check_count(request.for_class.count, layer, "for_class.count")
    if request.unit.WhichOneof("rule") == "position":
        _check_position(request.unit.position, layer)
    if request.format not in pb.PictureFormat.values():
        formats = ", ".join(pb.PictureFormat.keys()[1:])
        raise InvalidInput(f"format {request.format} is unknown; choose one of {formats}", field="format")


def map_count(request: AnyProjectRequest, manifest: Manifest) -> int:
    """Returns the number of maps that a request asks for. Call `validate_projection_request` first."""
    layer = manifest.layer(request.layer)
    assert layer is not None, "validate_projection_request comes first"
    if request.WhichOneof("maps") == "selection":
        return len(request.selection.indices)
    return request.strongest or request.for_class.count or min(_DEFAULT_COUNT, layer.channels)


def find_class(name: str, manifest: Manifest) -> int | None:
    """Returns the index of the class whose id or label is `name`, or None if `name` is empty.

    Raises:
        NotFound: no class has that id or label.
        InvalidInput: several classes have that label.
    """
    if not name:
        return None
    for attribute in ("class_id", "label"):
        found = [index for index, entry in enumerate(manifest.classes) if getattr(entry, attribute) == name]
        if len(found) > 1:
            ids = ", ".join(manifest.classes[index].class_id for index in found)
            raise InvalidInput(
                f"{len(found)} classes are called {name[:64]!r}; give the id of one: {ids}",
                field="for_class.class_name",
            )
        if found:
            return found[0]
    labels = ", ".join(entry.label for entry in manifest.classes[:MAX_LISTED_CLASSES])
    more = ", ..." if len(manifest.classes) > MAX_LISTED_CLASSES else ""
    raise NotFound(f"there is no class {name[:64]!r}; choose one of {labels}{more}", field="for_class.class_name")


def _check_selection(indices: Sequence[int], layer: LayerEntry) -> None:
    if not 1 <= len(indices) <= layer.channels:
        raise InvalidInput(f"name between 1 and {layer.channels} maps of {layer.name}", field="selection.indices")
    worst = max(indices)
    if worst >= layer.channels:
        raise OutOfRange(
            f"{layer.name} has the maps 0 to {layer.channels - 1}; {worst} is not among them", field="selection.indices"
        )


def _check_count(count: int, layer: LayerEntry, field: str) -> None:
    if count == 0:
        raise InvalidInput(f"ask for 1 to {layer.channels} maps of {layer.name}", field=field)
    if count > layer.channels:
        raise OutOfRange(f"{layer.name} has {layer.channels} maps; ask for no more", field=field)


def _check_position(position: pb.Position, layer: LayerEntry) -> None:
    if position.row >= layer.height or position.column >= layer.width:
        raise OutOfRange(
            f"{layer.name} has {layer.height} rows and {layer.width} columns of units, counted from 0; "
            f"({position.row}, {position.column}) is outside",
            field="unit.position",
        )
