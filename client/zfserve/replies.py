"""Converts the service's replies to results. Both clients use it."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message
from zfserve_protos.v1 import zfserve_pb2

from zfserve.explanation import Explanation, HeatMap
from zfserve.model_description import (
    AccuracyFigure,
    Engine,
    EngineNotTaken,
    InputSpec,
    Layer,
    ModelDescription,
    ModelStatus,
    ParityFigure,
)
from zfserve.requests import METHODS
from zfserve.results import (
    Box,
    Classification,
    ClassScore,
    Float32Picture,
    ImageReference,
    ModelIdentity,
    Position,
    Projection,
    Timings,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Result = TypeVar("_Result", bound="DataclassInstance")

_STATES = {
    zfserve_pb2.MODEL_STATE_LOADING: "loading",
    zfserve_pb2.MODEL_STATE_READY: "ready",
    zfserve_pb2.MODEL_STATE_FAILED: "failed",
    zfserve_pb2.MODEL_STATE_RETIRING: "retiring",
}

_RULES = {
    # Servers before Explain name no rule. They serve networks whose activations are all ReLUs.
    zfserve_pb2.PROJECTION_RULE_UNSPECIFIED: "paper",
    zfserve_pb2.PROJECTION_RULE_PAPER: "paper",
    zfserve_pb2.PROJECTION_RULE_EXTENDED: "extended",
}

_METHODS = {number: name for name, number in METHODS.items()}


def classification(response: zfserve_pb2.ClassifyResponse) -> Classification:
    """Converts the reply of `Classify`."""
    return Classification(
        classes=tuple(from_message(ClassScore, entry) for entry in response.classes),
        model=from_message(ModelIdentity, response.model),
        image_reference=ImageReference(response.image_reference),
        features=tuple(response.features),
        timings=from_message(Timings, response.timings),
    )


def projection(response: zfserve_pb2.ProjectResponse, layer: str) -> Projection:
    """Converts one message of the stream of `Project`.

    Args:
        layer: the layer that the request named. The server repeats it only where it is a stage or "last".
    """
    return Projection(
        map=response.map,
        unit=from_message(Position, response.unit) if response.HasField("unit") else None,
        activation=response.activation,
        box=from_message(Box, response.box),
        source_box=from_message(Box, response.source_box) if response.HasField("source_box") else None,
        png=response.png if response.HasField("png") else None,
        pixels=from_message(Float32Picture, response.float32) if response.HasField("float32") else None,
        patch_png=response.patch_png,
        model=from_message(ModelIdentity, response.model),
        rank=response.rank,
        total=response.total,
        for_class=from_message(ClassScore, response.for_class) if response.HasField("for_class") else None,
        attribution=response.attribution if response.HasField("for_class") else None,
        layer=response.layer or layer,
        rule=_RULES.get(response.rule, ""),
        extended_nodes=tuple(response.extended_nodes),
    )


def explanation(response: zfserve_pb2.ExplainResponse) -> Explanation:
    """Converts the reply of `Explain`."""
    return from_message(
        Explanation,
        response,
        for_class=from_message(ClassScore, response.for_class),
        method=_METHODS.get(response.method, ""),
        heatmap=from_message(HeatMap, response.heatmap),
        baseline_score=response.baseline_score if response.HasField("baseline_score") else None,
        completeness_gap=response.completeness_gap if response.HasField("completeness_gap") else None,
        source_box=from_message(Box, response.source_box) if response.HasField("source_box") else None,
        model=from_message(ModelIdentity, response.model),
    )


def model_description(response: zfserve_pb2.DescribeModelResponse) -> ModelDescription:
    """Converts the reply of `DescribeModel`."""
    return ModelDescription(
        model=from_message(ModelIdentity, response.model),
        architecture=response.architecture,
        classes=tuple(from_message(ClassScore, entry) for entry in response.classes),
        input=from_message(InputSpec, response.input, interpolation=response.input.interpolation or "bilinear"),
        layers=tuple(map(_layer, response.layers)),
        parity=tuple(from_message(ParityFigure, entry) for entry in response.parity),
        accuracy=tuple(from_message(AccuracyFigure, entry) for entry in response.accuracy),
        engine=from_message(
            Engine,
            response.engine,
            not_taken=tuple(from_message(EngineNotTaken, entry) for entry in response.engine.not_taken),
        ),
        feature_width=response.feature_width,
        projection_available=response.projection_available,
        versions=tuple(model_status(entry) for entry in response.versions),
        source=response.source,
        projection_obstacle=response.projection_obstacle,
        fixed_batch_size=response.fixed_batch_size,
    )


def _layer(entry: zfserve_pb2.Layer) -> Layer:
    """Converts a layer. The message has the figures of columns only where they differ from those of rows."""
    return from_message(
        Layer,
        entry,
        receptive_field_width=entry.receptive_field_width or entry.receptive_field,
        stride_width=entry.stride_width or entry.stride,
        offset_width=entry.offset_width if entry.HasField("offset_width") else entry.offset,
        rule=_RULES.get(entry.rule, ""),
    )


def model_status(entry: zfserve_pb2.ModelStatus) -> ModelStatus:
    """Converts the status of one version, as `DescribeModel` and `ListModels` give it."""
    return from_message(ModelStatus, entry, state=_STATES.get(entry.state, ""))


def from_message(result: type[_Result], message: Message, **converted: object) -> _Result:
    """Converts `message` to a `result`, which has fields of the same names.

    Args:
        converted: the values of fields that hold messages themselves.
    """
    values = {field.name: getattr(message, field.name) for field in fields(result) if field.name not in converted}
    plain = {name: tuple(value) if _is_repeated(value) else value for name, value in values.items()}
    return result(**plain, **converted)


def _is_repeated(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
