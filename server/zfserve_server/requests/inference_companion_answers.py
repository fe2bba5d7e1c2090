"""Converts projections and explanations to output tensors of companion models. Used by `inference_companions`.

Pictures are PNG files in BYTES tensors. The pictures of one request differ in size, so that no array of pixels could
hold them without padding, and every client can read a file.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from zfserve_protos.v1 import zfserve_pb2 as pb

from zfserve_server.requests.inference_outputs import TensorValues

NO_NUMBER = -1
"""A tensor of whole numbers has this value where there is no value. A tensor of floats has NaN."""


def projection_tensors(projections: Sequence[pb.ProjectResponse]) -> dict[str, TensorValues]:
    """Returns the output tensors of `NAME.project` by name.

    Args:
        projections: all answers to one request, at least one.
    """
    first = projections[0]
    rule = pb.ProjectionRule.Name(first.rule).removeprefix("PROJECTION_RULE_").lower()
    return {
        "maps": _int64([each.map for each in projections]),
        "activations": _float32([each.activation for each in projections]),
        "attributions": _float32(
            [each.attribution if each.HasField("for_class") else math.nan for each in projections]
        ),
        "units": _int64([_unit(each) for each in projections]),
        "boxes": _int64([_box(each.source_box) for each in projections]),
        "input_boxes": _int64([_box(each.box) for each in projections]),
        "pictures": [each.png for each in projections],
        "patches": [each.patch_png for each in projections],
        "layer": [first.layer.encode()],
        "rule": [rule.encode()],
        **_class_tensors(first.for_class if first.HasField("for_class") else None),
    }


def explanation_tensors(explanation: pb.ExplainResponse) -> dict[str, TensorValues]:
    """Returns the output tensors of `NAME.explain` by name."""
    heatmap = explanation.heatmap
    has_baseline = explanation.HasField("baseline_score")
    return {
        "heatmap": np.frombuffer(heatmap.data, "<f4").reshape(heatmap.height, heatmap.width),
        "overlay": [explanation.overlay_png],
        "scale": _float32([explanation.scale]),
        **_class_tensors(explanation.for_class),
        "served_probability": _float32([explanation.served_probability]),
        "served_precision": [explanation.served_precision.encode()],
        "score": _float32([explanation.score]),
        "baseline_score": _float32([explanation.baseline_score if has_baseline else math.nan]),
        "completeness_gap": _float32([explanation.completeness_gap if has_baseline else math.nan]),
        "box": _int64(_box(explanation.source_box)),
        "layer": [explanation.layer.encode()],
    }


def shape_of(values: TensorValues) -> Sequence[int]:
    """Returns the shape of a tensor that one of these functions made."""
    return (len(values),) if isinstance(values, list) else values.shape


def _class_tensors(for_class: pb.ClassScore | None) -> dict[str, TensorValues]:
    if for_class is None:
        return {"class_index": _int64([NO_NUMBER]), "label": [b""], "probability": _float32([math.nan])}
    return {
        "class_index": _int64([for_class.index]),
        "label": [for_class.label.encode()],
        "probability": _float32([for_class.probability]),
    }


def _unit(projection: pb.ProjectResponse) -> tuple[int, int]:
    if not projection.HasField("unit"):
        return NO_NUMBER, NO_NUMBER
    return projection.unit.row, projection.unit.column


def _box(box: pb.Box) -> tuple[int, int, int, int]:
    return box.left, box.top, box.right, box.bottom


def _int64(values: Sequence[int] | Sequence[tuple[int, ...]]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _float32(values: Sequence[float]) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)
