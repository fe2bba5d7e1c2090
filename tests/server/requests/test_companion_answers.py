"""Projections and explanations become output tensors of companion models, without a server."""

import math
from typing import Any

import numpy as np
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_server.requests.inference_companion_answers import explanation_tensors, projection_tensors


def test_the_tensors_of_projections_for_a_class() -> None:
    for_class = pb.ClassScore(label="Bär", class_id="n4", index=4, probability=0.5)
    shared: dict[str, Any] = {"layer": "relu5", "rule": pb.PROJECTION_RULE_EXTENDED, "for_class": for_class}
    read = projection_tensors(
        [
            pb.ProjectResponse(
                map=7, unit=pb.Position(row=1, column=2), attribution=-0.5, patch_png=b"patch", **shared
            ),
            pb.ProjectResponse(map=3, attribution=0.25, **shared),
        ]
    )
    assert np.asarray(read["units"]).tolist() == [[1, 2], [-1, -1]]
    assert np.asarray(read["attributions"]).tolist() == [-0.5, 0.25]
    assert (read["patches"], read["rule"], read["label"]) == ([b"patch", b""], [b"extended"], ["Bär".encode()])
    assert np.asarray(read["class_index"]).tolist() == [4]


def test_a_value_that_does_not_exist_is_no_number() -> None:
    projected = projection_tensors([pb.ProjectResponse(map=7)])
    explained = explanation_tensors(pb.ExplainResponse(heatmap=pb.HeatMap(height=1, width=1, data=bytes(4))))
    for values in (projected["attributions"], projected["probability"], explained["baseline_score"]):
        assert math.isnan(np.asarray(values).item())
    assert projected["label"] == [b""]
