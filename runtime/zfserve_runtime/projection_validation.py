"""Validates requests for projections and explanations. The server and the worker apply the same rules."""

from collections.abc import Sequence

from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2

from zfserve_runtime.bundle import LayerEntry, Manifest
from zfserve_runtime.errors import InvalidInput, NotFound, OutOfRange, Unimplemented

_DEFAULT_COUNT = 9
"""The number of maps if the request does not give one."""

_DEFAULT_LAYER = "last"
"""The layer of an explanation if the request does not name one."""

MAX_LISTED = 20
"""The largest number of layers, stages or classes that an error names."""

_LISTED_LENGTH = 400
"""An error lists no further name once the listed ones have more characters."""

QUOTED_LENGTH = 64
"""An error quotes at most this many characters of a name."""

AnyProjectRequest = pb.ProjectRequest | worker_pb2.ProjectRequest
AnyExplainRequest = pb.ExplainRequest | worker_pb2.ExplainRequest


def validate_projection_request(request: AnyProjectRequest, manifest: Manifest) -> LayerEntry:
    """Returns the layer to project. Refuses a request that does not fit the model, before any work is done.

    Raises:
        NotFound: the model has no such layer or class.
        OutOfRange: the layer has no such map or unit, or fewer maps than requested.
        InvalidInput: the request names no maps or too many, a label that several classes share, or an unknown format.
        Unimplemented: a node of the network is in the way of the projection, or of the attribution to a class.
    """
    layer = find_layer(request.layer, manifest)
    if request.WhichOneof("maps") == "selection":
        _check_selection(request.selection.indices, layer)
    elif request.WhichOneof("maps") == "strongest":
        _check_count(request.strongest, layer, "strongest")
    elif request.WhichOneof("maps") == "for_class":
        check_attribution(manifest)
        find_class(request.for_class.class_name, manifest, "for_class.class_name")
        if request.for_class.count:
            _check_count(request.for_class.count, layer, "for_class.count")
    if request.unit.WhichOneof("rule") == "position":
        _check_position(request.unit.position, layer)
    if request.format not in pb.PictureFormat.values():
        formats = ", ".join(pb.PictureFormat.keys()[1:])
        raise InvalidInput(f"format {request.format} is unknown; choose one of {formats}", field="format")
    return layer


def validate_explanation_request(request: AnyExplainRequest, manifest: Manifest) -> LayerEntry:
    """Returns the layer to explain. Refuses a request that does not fit the model, before any work is done.

    Raises:
        NotFound: the model has no such layer or class.
        InvalidInput: the request names a label that several classes share, or an unknown method.
        Unimplemented: the network has no layers, or a node keeps its scores from being explained.
    """
    layer = find_explained_layer(request.layer, manifest)
    check_attribution(manifest)
    find_class(request.class_name, manifest, "class_name")
    if request.method not in pb.ExplanationMethod.values():
        methods = ", ".join(pb.ExplanationMethod.keys()[1:])
        raise InvalidInput(f"method {request.method} is unknown; choose one of {methods}", field="method")
    return layer


def map_count(request: AnyProjectRequest, layer: LayerEntry) -> int:
    """Returns the number of maps of `layer` that a request asks for."""
    if request.WhichOneof("maps") == "selection":
        return len(request.selection.indices)
    return request.strongest or request.for_class.count or min(_DEFAULT_COUNT, layer.channels)


def find_layer(name: str, manifest: Manifest) -> LayerEntry:
    """Returns the layer that `name` selects: by its own name, by the name of its stage, or as "last".

    Raises:
        NotFound: the model has no such layer.
        Unimplemented: the model has no such layer, and a node of the network keeps some layers from being projected.
    """
    if layer := manifest.resolve_layer(name):
        return layer
    choice = f"; choose {layer_names(manifest)}" if manifest.layers else ""
    sentence = f"there is no layer {name[:QUOTED_LENGTH]!r} that can be projected"
    if manifest.projection_obstacle:
        raise Unimplemented(f"{sentence}: {manifest.projection_obstacle}{choice}", field="layer")
    raise NotFound(f"{sentence}{choice}", field="layer")


def find_explained_layer(name: str, manifest: Manifest) -> LayerEntry:
    """Returns the layer that `name` selects for an explanation. "" stands for "last".

    Only layers that can be projected are in the manifest, so an explanation has the same choice.

    Raises:
        NotFound: the model has no such layer.
        Unimplemented: the model has no layers at all.
    """
    if layer := manifest.resolve_layer(name or _DEFAULT_LAYER):
        return layer
    if not manifest.layers and manifest.projection_obstacle:
        sentence = f"no layer of this network can be explained: {manifest.projection_obstacle}"
        raise Unimplemented(sentence, field="layer")
    choice = f"; choose {layer_names(manifest)}" if manifest.layers else ""
    raise NotFound(f"there is no layer {name[:QUOTED_LENGTH]!r} that can be explained{choice}", field="layer")


def find_class(name: str, manifest: Manifest, field: str) -> int | None:
    """Returns the index of the class whose id or label is `name`, or None if `name` is empty.

    Args:
        field: the field of the request that holds `name`.

    Raises:
        NotFound: no class has that id or label.
        InvalidInput: several classes have that label.
    """
    if not name:
        return None
    quoted = repr(name[:QUOTED_LENGTH])
    for attribute in ("class_id", "label"):
        found = [index for index, entry in enumerate(manifest.classes) if getattr(entry, attribute) == name]
        if len(found) > 1:
            ids = listed([manifest.classes[index].class_id for index in found])
            raise InvalidInput(f"{len(found)} classes are called {quoted}; give the id of one: {ids}", field=field)
        if found:
            return found[0]
    labels = [entry.label for entry in manifest.classes]
    similar = [label for label in labels if name.casefold() in label.casefold()]
    raise NotFound(f"there is no class {quoted}; choose one of {listed(similar or labels)}", field=field)


def layer_names(manifest: Manifest) -> str:
    """Returns what a request may name: all layers, or the stages where a network has too many layers for a sentence."""
    names = [layer.name for layer in manifest.layers]
    if len(names) <= MAX_LISTED:
        return f"last or one of {listed(names)}"
    stages = list(dict.fromkeys(layer.stage for layer in manifest.layers if layer.stage))
    return f"last, a stage ({listed(stages)}), or one of {len(names)} layers, such as {names[0]} and {names[-1]}"


def listed(names: Sequence[str]) -> str:
    """Returns at most `MAX_LISTED` of the names, separated by commas. It lists fewer names if they are long."""
    shown: list[str] = []
    for name in names[:MAX_LISTED]:
        if sum(map(len, shown)) > _LISTED_LENGTH:
            break
        shown.append(name[:QUOTED_LENGTH])
    if more := len(names) - len(shown):
        shown.append(f"... ({more} more)")
    return ", ".join(shown)


def check_attribution(manifest: Manifest) -> None:
    if manifest.attribution_obstacle:
        raise Unimplemented(f"this network's classes cannot be explained: {manifest.attribution_obstacle}")


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
