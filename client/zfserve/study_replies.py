"""Converts the replies of `Activations`, `Occlude`, `Ablate` and `Transform` to results. Both clients use it.

Every result has what the service says in the first message only, such as the untouched probabilities. So three of the
converters are objects that keep what came before. Each stream needs a new one.
"""

from zfserve_protos.v1 import zfserve_pb2

from zfserve.occlusion import OcclusionPlan, OcclusionSummary, OcclusionUpdate
from zfserve.replies import from_message
from zfserve.results import Box, ClassScore, ModelIdentity, Position
from zfserve.studies import (
    AblationStep,
    Computation,
    FeatureDistance,
    LayerActivations,
    PhotoActivations,
    TransformStep,
)
from zfserve.study_requests import BORDERS, KINDS, RESAMPLINGS

_KINDS = {number: name for name, number in KINDS.items()}
_BORDERS = {number: name for name, number in BORDERS.items()}
_RESAMPLINGS = {number: name for name, number in RESAMPLINGS.items()}


class ActivationsReplies:
    """Joins the messages of one photo to a result. A large layer comes in several messages."""

    def __init__(self) -> None:
        self._about = zfserve_pb2.ActivationsResponse()  # the last message that names the model
        self._layers: dict[str, list[zfserve_pb2.ActivationsResponse]] = {}

    def __call__(self, response: zfserve_pb2.ActivationsResponse) -> PhotoActivations | None:
        """Takes the next message. Returns the result of the photo after its last message, and None before."""
        if response.HasField("model"):
            self._about = response
        if response.HasField("values"):
            if response.first_map == 0:  # the call may have named one layer twice
                self._layers[response.layer] = []
            self._layers.setdefault(response.layer, []).append(response)
        if not response.photo_ends:
            return None
        result = PhotoActivations(
            image=response.image,
            best=from_message(ClassScore, response.best),
            layers={layer: _layer_activations(parts) for layer, parts in self._layers.items()},
            computation=from_message(Computation, self._about.computation),
            model=from_message(ModelIdentity, self._about.model),
        )
        self._layers = {}
        return result


def _layer_activations(parts: list[zfserve_pb2.ActivationsResponse]) -> LayerActivations:
    return LayerActivations(
        layer=parts[0].layer,
        maps=sum(part.values.maps for part in parts),
        height=parts[0].values.height,
        width=parts[0].values.width,
        data=b"".join(part.values.data for part in parts),
        rows=tuple(row for part in parts for row in part.rows),
        columns=tuple(column for part in parts for column in part.columns),
    )


def occlusion_update(response: zfserve_pb2.OccludeResponse) -> OcclusionUpdate:
    """Converts one message of the stream of `Occlude`."""
    return from_message(
        OcclusionUpdate,
        response,
        plan=_plan(response.plan) if response.HasField("plan") else None,
        summary=_summary(response.summary) if response.HasField("summary") else None,
    )


def _plan(plan: zfserve_pb2.OcclusionPlan) -> OcclusionPlan:
    return from_message(
        OcclusionPlan,
        plan,
        for_class=from_message(ClassScore, plan.for_class),
        best=from_message(ClassScore, plan.best),
        map=plan.map if plan.HasField("unit") else None,
        unit=from_message(Position, plan.unit) if plan.HasField("unit") else None,
        computation=from_message(Computation, plan.computation),
        model=from_message(ModelIdentity, plan.model),
        source_box=from_message(Box, plan.source_box) if plan.HasField("source_box") else None,
    )


def _summary(summary: zfserve_pb2.OcclusionSummary) -> OcclusionSummary:
    return from_message(
        OcclusionSummary,
        summary,
        box=from_message(Box, summary.box),
        source_box=from_message(Box, summary.source_box) if summary.HasField("source_box") else None,
        map_box=from_message(Box, summary.map_box) if summary.HasField("map_box") else None,
        map_source_box=from_message(Box, summary.map_source_box) if summary.HasField("map_source_box") else None,
    )


class AblateReplies:
    """Converts the messages of one stream of `Ablate`."""

    def __init__(self) -> None:
        self._first: zfserve_pb2.AblateResponse | None = None

    def __call__(self, response: zfserve_pb2.AblateResponse) -> AblationStep:
        """Converts the next message."""
        if self._first is None:
            self._first = response
        first = self._first
        chosen_for_class = first.HasField("for_class")
        return from_message(
            AblationStep,
            response,
            attribution=response.attribution if chosen_for_class else None,
            untouched=tuple(first.untouched),
            for_class=from_message(ClassScore, first.for_class) if chosen_for_class else None,
            layer=first.layer,
            computation=from_message(Computation, first.computation),
            model=from_message(ModelIdentity, first.model),
        )


class TransformReplies:
    """Converts the messages of one stream of `Transform`."""

    def __init__(self) -> None:
        self._first: zfserve_pb2.TransformResponse | None = None

    def __call__(self, response: zfserve_pb2.TransformResponse) -> TransformStep:
        """Converts the next message."""
        if self._first is None:
            self._first = response
        first = self._first
        return from_message(
            TransformStep,
            response,
            for_class=from_message(ClassScore, response.for_class),
            best=from_message(ClassScore, response.best),
            low=from_message(FeatureDistance, response.low) if response.HasField("low") else None,
            high=from_message(FeatureDistance, response.high) if response.HasField("high") else None,
            picture_png=response.picture_png or None,
            untouched=from_message(ClassScore, first.untouched),
            kind=_KINDS.get(first.kind, ""),
            border=_BORDERS.get(first.border, ""),
            resampling=_RESAMPLINGS.get(first.resampling, ""),
            computation=from_message(Computation, first.computation),
            model=from_message(ModelIdentity, first.model),
        )
