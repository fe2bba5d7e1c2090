"""Converts the service's replies to results. Both clients use it."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message
from zfserve_protos.v1 import zfserve_pb2

from zfserve.results import (
    AccuracyFigure,
    Box,
    Classification,
    ClassScore,
    Engine,
    EngineNotTaken,
    Float32Picture,
    ImageReference,
    InputSpec,
    Layer,
    ModelDescription,
    ModelIdentity,
    ModelStatus,
    ParityFigure,
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


def classification(response: zfserve_pb2.ClassifyResponse) -> Classification:
    """Converts the reply of `Classify`."""
    return Classification(
        classes=tuple(_mirror(ClassScore, entry) for entry in response.classes),
        model=_mirror(ModelIdentity, response.model),
        image_reference=ImageReference(response.image_reference),
        features=tuple(response.features),
        timings=_mirror(Timings, response.timings),
    )


def projection(response: zfserve_pb2.ProjectResponse) -> Projection:
    """Converts one message of the stream of `Project`."""
    return Projection(
        map=response.map,
        unit=_mirror(Position, response.unit) if response.HasField("unit") else None,
        activation=response.activation,
        box=_mirror(Box, response.box),
        source_box=_mirror(Box, response.source_box) if response.HasField("source_box") else None,
        png=response.png if response.HasField("png") else None,
        pixels=_mirror(Float32Picture, response.float32) if response.HasField("float32") else None,
        patch_png=response.patch_png,
        model=_mirror(ModelIdentity, response.model),
        rank=response.rank,
        total=response.total,
        for_class=_mirror(ClassScore, response.for_class) if response.HasField("for_class") else None,
        attribution=response.attribution if response.HasField("for_class") else None,
    )


def model_description(response: zfserve_pb2.DescribeModelResponse) -> ModelDescription:
    """Converts the reply of `DescribeModel`."""
    return ModelDescription(
        model=_mirror(ModelIdentity, response.model),
        architecture=response.architecture,
        classes=tuple(_mirror(ClassScore, entry) for entry in response.classes),
        input=_mirror(InputSpec, response.input),
        layers=tuple(_mirror(Layer, entry) for entry in response.layers),
        parity=tuple(_mirror(ParityFigure, entry) for entry in response.parity),
        accuracy=tuple(_mirror(AccuracyFigure, entry) for entry in response.accuracy),
        engine=_mirror(
            Engine,
            response.engine,
            not_taken=tuple(_mirror(EngineNotTaken, entry) for entry in response.engine.not_taken),
        ),
        feature_width=response.feature_width,
        projection_available=response.projection_available,
        versions=tuple(model_status(entry) for entry in response.versions),
    )


def model_status(entry: zfserve_pb2.ModelStatus) -> ModelStatus:
    """Converts the status of one version, as `DescribeModel` and `ListModels` give it."""
    return _mirror(ModelStatus, entry, state=_STATES.get(entry.state, ""))


def _mirror(result: type[_Result], message: Message, **mirrored: object) -> _Result:
    """Returns a `result` with the values of the message's fields of the same names.

    Args:
        mirrored: the fields that hold messages themselves, already converted.
    """
    values = {field.name: getattr(message, field.name) for field in fields(result) if field.name not in mirrored}
    plain = {name: tuple(value) if _is_repeated(value) else value for name, value in values.items()}
    return result(**plain, **mirrored)


def _is_repeated(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
