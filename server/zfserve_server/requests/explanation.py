"""Converts Explain requests for the worker, and checks and completes its explanations. Used by `vision_service`."""

import logging
import math

import numpy as np
from zfserve_engines.images.input_image import InputImage
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.worker.v1 import worker_pb2
from zfserve_runtime.bundle import LayerEntry, Manifest
from zfserve_runtime.errors import EngineFailed

from zfserve_server.batching.queue_entry import InferenceResult
from zfserve_server.models.served_model import ServedModel

logger = logging.getLogger(__name__)


def explanation_request(
    request: pb.ExplainRequest, image: InputImage, layer: LayerEntry, manifest: Manifest
) -> worker_pb2.ExplainRequest:
    """Returns the request for the worker: pixels in place of the photo, and defaults filled in.

    Args:
        request: a request that `validate_explanation_request` accepted.
        layer: the layer that it selects.
    """
    return worker_pb2.ExplainRequest(
        fingerprint=manifest.fingerprint,
        pixels=image.pixels.tobytes(),
        layer=layer.name,
        class_name=request.class_name,
        method=request.method or pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS,
    )


def check_explanation(explanation: pb.ExplainResponse, layer: LayerEntry, manifest: Manifest) -> None:
    """Raises EngineFailed if the worker's answer cannot be an explanation by that layer."""
    heatmap = explanation.heatmap
    numbers = (
        explanation.for_class.probability,
        explanation.score,
        explanation.baseline_score,
        explanation.completeness_gap,
        explanation.scale,
    )
    if not (
        explanation.for_class.index < len(manifest.classes)
        and (heatmap.height, heatmap.width) == (layer.height, layer.width)
        and len(heatmap.data) == 4 * heatmap.height * heatmap.width
        and np.isfinite(np.frombuffer(heatmap.data, "<f4")).all()
        and all(map(math.isfinite, numbers))
        and explanation.overlay_png
    ):
        logger.error(
            "the worker's answer makes no sense",
            extra={"class": explanation.for_class.index, "height": heatmap.height, "width": heatmap.width},
        )
        raise EngineFailed("the worker's answer to this explanation makes no sense; try again")


def complete_explanation(
    explanation: pb.ExplainResponse, image: InputImage, served: InferenceResult, layer: LayerEntry, model: ServedModel
) -> None:
    """Adds what only the server knows: the version that serves, its own probability of the class, and the region of the
    photo as it was sent.

    Args:
        served: the result of the serving engine for the same photo.
    """
    spec = model.manifest.input
    left, top, right, bottom = image.source_box(0, 0, spec.width, spec.height)
    explanation.source_box.CopyFrom(pb.Box(left=left, top=top, right=right, bottom=bottom))
    explanation.served_probability = served.probabilities[explanation.for_class.index]
    explanation.served_precision = model.choice.instances[0].info.precision
    explanation.model.CopyFrom(model.identity)  # another version may have the same weights
    explanation.layer = layer.name
