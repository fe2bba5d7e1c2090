"""Validates `Transform` requests, and fills in what they leave open. `study_service` calls it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import InputSpec, Manifest
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.projection_validation import find_class

from zfserve_server.studies.layers import FEATURES, ReadLayer, default_layer, features_of
from zfserve_server.studies.limits import MAX_STEPS, check_count, check_reply

SMALLEST_SCALE, LARGEST_SCALE = 0.25, 16.0
"""The smallest scale bounds the border that must be made around the photo: 16 times its pixels."""

LARGEST_BRIGHTNESS = 16.0

LARGEST_ANGLE = 3600.0
"""The largest angle of a rotation or hue, in degrees, in both directions."""

_SHIFTS = tuple(float(step) for step in range(-60, 61, 6))
_ANGLES = tuple(float(step) for step in range(0, 360, 10))

DEFAULT_STEPS: dict[int, Sequence[float]] = {
    pb.TRANSFORM_KIND_VERTICAL_TRANSLATION: _SHIFTS,
    pb.TRANSFORM_KIND_HORIZONTAL_TRANSLATION: _SHIFTS,
    pb.TRANSFORM_KIND_SCALE: [round(1 + 0.04 * step, 2) for step in range(21)],
    pb.TRANSFORM_KIND_ROTATION: _ANGLES,
    pb.TRANSFORM_KIND_HORIZONTAL_FLIP: (0.0, 1.0),
    pb.TRANSFORM_KIND_VERTICAL_FLIP: (0.0, 1.0),
    pb.TRANSFORM_KIND_HUE: _ANGLES,
    pb.TRANSFORM_KIND_BRIGHTNESS: [round(0.2 + 0.1 * step, 1) for step in range(17)],
}
"""The steps of each kind if the request names none. Translation, scale and rotation have the paper's ranges."""


@dataclass(frozen=True)
class TransformSettings:
    """Holds what a `Transform` request asks for.

    Attributes:
        class_index: None stands for the most probable class.
        low, high: the low layer and the last hidden layer; None where the network has no such layer that can be read.
    """

    kind: pb.TransformKind.ValueType
    steps: tuple[float, ...]
    border: pb.Border.ValueType
    resampling: pb.Resampling.ValueType
    class_index: int | None
    low: ReadLayer | None
    high: ReadLayer | None
    include_pictures: bool


def validate_transform_request(request: pb.TransformRequest, manifest: Manifest) -> TransformSettings:
    """Returns what the request asks for. Refuses a request that does not fit the model, before any work is done.

    Raises:
        InvalidInput: the kind, the border or the resampling is unknown, there are too many steps, or a step is out of
            range.
        NotFound: the model has no such layer or class.
        BundleOutdated: the bundle does not say where its layers are.
    """
    kind = request.kind
    if kind not in DEFAULT_STEPS:
        kinds = ", ".join(pb.TransformKind.keys()[1:])
        raise InvalidInput(f"kind {kind} is not a kind of change; choose one of {kinds}", field="kind")
    for field, enum in (("border", pb.Border), ("resampling", pb.Resampling)):
        if (value := getattr(request, field)) not in enum.values():
            raise InvalidInput(f"{field} {value} is unknown; choose one of {', '.join(enum.keys()[1:])}", field=field)
    steps = tuple(request.steps) or _default_steps(kind, manifest.input)
    check_count(len(steps), MAX_STEPS, "steps", "steps")
    _check_steps(kind, steps, manifest.input)
    if request.include_pictures:
        picture_bytes = 3 * manifest.input.height * manifest.input.width
        check_reply(len(steps) * picture_bytes, "ask for fewer steps at once, or leave the pictures out", "steps")
    first = manifest.layers[0].name if manifest.layers else ""
    return TransformSettings(
        kind,
        steps,
        request.border or pb.BORDER_GREY,
        request.resampling or pb.RESAMPLING_BILINEAR,
        find_class(request.class_name, manifest, "class_name"),
        default_layer(request.low_layer, manifest, first, "low_layer"),
        features_of(manifest, FEATURES) if manifest.feature_width else default_layer("", manifest, "last"),
        request.include_pictures,
    )


def _default_steps(kind: pb.TransformKind.ValueType, spec: InputSpec) -> tuple[float, ...]:
    """Returns the default steps that are in range. A small input has no room for the longest translations."""
    least, most = _range(kind, spec)
    return tuple(step for step in DEFAULT_STEPS[kind] if least <= step <= most)


def _check_steps(kind: pb.TransformKind.ValueType, steps: Sequence[float], spec: InputSpec) -> None:
    least, most = _range(kind, spec)
    flips = kind in (pb.TRANSFORM_KIND_HORIZONTAL_FLIP, pb.TRANSFORM_KIND_VERTICAL_FLIP)
    for step in steps:
        if not math.isfinite(step):
            raise InvalidInput(f"a step is {step}; every step must be a finite number", field="steps")
        if flips and step not in (0, 1):
            raise InvalidInput(f"a step of a flip is {step:g}; choose 0 or 1", field="steps")
        # A step arrives as float32, so a limit that float32 cannot express must allow for its rounding.
        if not np.float32(least) <= step <= np.float32(most):
            raise InvalidInput(f"a step is {step:g}; this kind takes {least:g} to {most:g}", field="steps")


def _range(kind: pb.TransformKind.ValueType, spec: InputSpec) -> tuple[float, float]:
    """Returns the smallest and the largest step. A translation by the whole side leaves nothing of the photo."""
    match kind:
        case pb.TRANSFORM_KIND_VERTICAL_TRANSLATION:
            return -spec.height, spec.height
        case pb.TRANSFORM_KIND_HORIZONTAL_TRANSLATION:
            return -spec.width, spec.width
        case pb.TRANSFORM_KIND_SCALE:
            return SMALLEST_SCALE, LARGEST_SCALE
        case pb.TRANSFORM_KIND_BRIGHTNESS:
            return 0, LARGEST_BRIGHTNESS
        case pb.TRANSFORM_KIND_ROTATION | pb.TRANSFORM_KIND_HUE:
            return -LARGEST_ANGLE, LARGEST_ANGLE
    return 0, 1
