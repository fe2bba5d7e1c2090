"""Converts Project requests for the worker, and checks and completes its projections. Used by `vision_service`."""

import logging
import math

from zfserve_engines.images.input_image import InputImage
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import LayerEntry, Manifest
from zfserve_runtime.errors import EngineFailed
from zfserve_runtime.projection_validation import map_count

from zfserve_server.models.served_model import PROJECTION_RULES, ServedModel

logger = logging.getLogger(__name__)


def projection_request(
    request: pb.ProjectRequest, image: InputImage, layer: LayerEntry, manifest: Manifest
) -> worker_pb2.ProjectRequest:
    """Returns the request for the worker: pixels in place of the photo, and defaults filled in.

    Args:
        request: a request that `validate_projection_request` accepted.
        layer: the layer that it selects.
    """
    forwarded = worker_pb2.ProjectRequest(
        fingerprint=manifest.fingerprint,
        pixels=image.pixels.tobytes(),
        layer=layer.name,
        unit=request.unit,
        format=request.format or pb.PICTURE_FORMAT_PNG,
    )
    match request.WhichOneof("maps"):
        case "selection":
            forwarded.selection.CopyFrom(request.selection)
        case "for_class":
            forwarded.for_class.CopyFrom(request.for_class)
            forwarded.for_class.count = map_count(request, layer)
        case _:
            forwarded.strongest = map_count(request, layer)
    return forwarded


def check_projection(projection: pb.ProjectResponse, layer: LayerEntry, manifest: Manifest) -> None:
    """Raises EngineFailed if the worker's answer cannot be a projection of that layer."""
    spec, box = manifest.input, projection.box
    if not (
        projection.map < layer.channels
        and projection.rank < projection.total
        and box.left < box.right <= spec.width
        and box.top < box.bottom <= spec.height
        and math.isfinite(projection.activation)
        and math.isfinite(projection.attribution)
        and projection.WhichOneof("picture")
    ):
        logger.error("the worker's answer makes no sense", extra={"map": projection.map, "rank": projection.rank})
        raise EngineFailed("the worker's answer to this projection makes no sense; try again")


def complete_projection(
    projection: pb.ProjectResponse, image: InputImage, layer: LayerEntry, model: ServedModel
) -> None:
    """Adds what only the server knows: the version that serves, and the box in pixels of the photo as it was sent.

    A worker of a release before 0.2.0 tells neither the layer nor the rule. So these come from the manifest.
    """
    box = projection.box
    left, top, right, bottom = image.source_box(box.left, box.top, box.right, box.bottom)
    projection.source_box.CopyFrom(pb.Box(left=left, top=top, right=right, bottom=bottom))
    projection.model.CopyFrom(model.identity)  # another version may have the same weights
    projection.layer = layer.name
    projection.rule = projection.rule or PROJECTION_RULES[layer.rule]
