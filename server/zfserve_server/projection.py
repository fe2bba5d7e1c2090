"""What a Project request may ask for, and the worker's request that follows from it. Called by the service."""

from collections.abc import Sequence

from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import LayerEntry, Manifest
from zfserve_runtime.errors import InvalidInput, NotFound, OutOfRange
from zfserve_runtime.images import InputImage

DEFAULT_STRONGEST = 9


def check_projection(request: pb.ProjectRequest, manifest: Manifest) -> None:
    """Refuse what the model does not have, before any work is done.

    Raises:
        NotFound: the layer.
        OutOfRange: a map or the unit.
        InvalidInput: no maps, more than there are, or an unknown format.
    """
    layer = manifest.layer(request.layer)
    if layer is None:
        names = ", ".join(entry.name for entry in manifest.layers)
        raise NotFound(f"there is no layer {request.layer[:64]!r}; choose one of {names}", field="layer")
    if request.WhichOneof("maps") == "selection":
        _check_selection(request.selection.indices, layer)
    elif request.WhichOneof("maps") == "strongest":
        _check_strongest(request.strongest, layer)
    position = request.unit.position
    if request.unit.WhichOneof("rule") == "position" and not (
        position.row < layer.height and position.column < layer.width
    ):
        raise OutOfRange(
            f"{layer.name} has {layer.height} rows and {layer.width} columns of units, counted from 0; "
            f"({position.row}, {position.column}) is outside",
            field="unit.position",
        )
    if request.format not in pb.PictureFormat.values():
        formats = ", ".join(pb.PictureFormat.keys()[1:])
        raise InvalidInput(f"format {request.format} is unknown; choose one of {formats}", field="format")


def worker_request(request: pb.ProjectRequest, image: InputImage, manifest: Manifest) -> worker_pb2.ProjectRequest:
    """The same request for the worker, with the pixels in place of the photo and the defaults filled in."""
    forwarded = worker_pb2.ProjectRequest(
        fingerprint=manifest.fingerprint,
        pixels=image.pixels.tobytes(),
        layer=request.layer,
        unit=request.unit,
        format=request.format or pb.PICTURE_FORMAT_PNG,
    )
    if request.WhichOneof("maps") == "selection":
        forwarded.selection.CopyFrom(request.selection)
    else:
        layer = manifest.layer(request.layer)
        assert layer is not None, "check_projection comes first"
        forwarded.strongest = request.strongest or min(DEFAULT_STRONGEST, layer.channels)
    return forwarded


def add_source_box(projection: pb.ProjectResponse, image: InputImage) -> None:
    """Fill in where the projection lies in the photo as it was sent."""
    box = projection.box
    left, top, right, bottom = image.source_box(box.left, box.top, box.right, box.bottom)
    projection.source_box.CopyFrom(pb.Box(left=left, top=top, right=right, bottom=bottom))


def _check_selection(indices: Sequence[int], layer: LayerEntry) -> None:
    if not 1 <= len(indices) <= layer.channels:
        raise InvalidInput(f"name between 1 and {layer.channels} maps of {layer.name}", field="selection.indices")
    worst = max(indices)
    if worst >= layer.channels:
        raise OutOfRange(
            f"{layer.name} has the maps 0 to {layer.channels - 1}; {worst} is not among them", field="selection.indices"
        )


def _check_strongest(strongest: int, layer: LayerEntry) -> None:
    if strongest == 0:
        raise InvalidInput(f"ask for at least one map, at most {layer.channels}", field="strongest")
    if strongest > layer.channels:
        raise OutOfRange(f"{layer.name} has {layer.channels} maps; ask for no more", field="strongest")
