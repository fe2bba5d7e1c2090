"""Converts Project requests for the worker, and checks and completes its projections. Used by `vision_service`."""

import logging
import math

from zfserve_engines.images.input_image import InputImage
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import EngineFailed
from zfserve_runtime.projection_validation import map_count

logger = logging.getLogger(__name__)


def worker_request(request: pb.ProjectRequest, image: InputImage, manifest: Manifest) -> worker_pb2.ProjectRequest:
    """Returns the request for the worker: pixels in place of the photo, and defaults filled in.

    Args:
        request: a request that `validate_projection_request` accepted.
    """
    forwarded = worker_pb2.ProjectRequest(
        fingerprint=manifest.fingerprint,
        pixels=image.pixels.tobytes(),
        layer=request.layer,
        unit=request.unit,
        format=request.format or pb.PICTURE_FORMAT_PNG,
    )
    match request.WhichOneof("maps"):
        case "selection":
            forwarded.selection.CopyFrom(request.selection)
        case "for_class":
            forwarded.for_class.CopyFrom(request.for_class)
            forwarded.for_class.count = map_count(request, manifest)
        case _:
            forwarded.strongest = map_count(request, manifest)
    return forwarded


def check_projection(projection: pb.ProjectResponse, layer: str, manifest: Manifest) -> None:
    """Raises EngineFailed if the worker's answer cannot be a projection of that layer."""
    entry, spec, box = manifest.layer(layer), manifest.input, projection.box
    assert entry is not None, "validate_projection_request comes first"
    if not (
        projection.map < entry.channels
        and projection.rank < projection.total
        and box.left < box.right <= spec.width
        and box.top < box.bottom <= spec.height
        and math.isfinite(projection.activation)
        and math.isfinite(projection.attribution)
        and projection.WhichOneof("picture")
    ):
        logger.error("the worker's answer makes no sense", extra={"map": projection.map, "rank": projection.rank})
        raise EngineFailed("the worker's answer to this projection makes no sense; try again")


def add_source_box(projection: pb.ProjectResponse, image: InputImage) -> None:
    """Adds the projection's box in pixels of the photo as the client sent it."""
    box = projection.box
    left, top, right, bottom = image.source_box(box.left, box.top, box.right, box.bottom)
    projection.source_box.CopyFrom(pb.Box(left=left, top=top, right=right, bottom=bottom))
