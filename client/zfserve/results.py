"""What the clients return: plain frozen dataclasses, made from the service's messages.

The fields mirror `zfserve.proto`, where each is explained; here stands only what differs from it.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from zfserve_protos.v1 import zfserve_pb2

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Result = TypeVar("_Result", bound="DataclassInstance")


@dataclass(frozen=True)
class ClassScore:
    label: str
    class_id: str
    index: int
    probability: float


@dataclass(frozen=True)
class ModelIdentity:
    name: str
    version: str
    fingerprint: str


@dataclass(frozen=True)
class Timings:
    decode_ms: float
    queue_ms: float
    inference_ms: float
    batch_size: int


@dataclass(frozen=True)
class ImageReference:
    """Names a photo the server still holds; pass it to `project` in place of the photo."""

    value: str


@dataclass(frozen=True)
class Classification:
    """The best classes of one photo, most probable first.

    Attributes:
        features: activations of the last hidden layer; empty unless asked for.
    """

    classes: tuple[ClassScore, ...]
    model: ModelIdentity
    image_reference: ImageReference
    features: tuple[float, ...]
    timings: Timings


@dataclass(frozen=True)
class Position:
    """A unit's place in a feature map, from 0 at the top left."""

    row: int
    column: int


@dataclass(frozen=True)
class Box:
    """A region in pixels: columns left <= x < right, rows top <= y < bottom."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Float32Picture:
    """A projection unscaled: float32, little endian, (3, height, width), RGB, in the normalised input's space."""

    height: int
    width: int
    data: bytes

    def to_numpy(self) -> Any:
        """As a read-only numpy array, float32 (3, height, width). The one method that needs numpy."""
        numpy = importlib.import_module("numpy")
        return numpy.frombuffer(self.data, "<f4").reshape(3, self.height, self.width)


@dataclass(frozen=True)
class Projection:
    """The pixels that drove one feature map.

    Attributes:
        unit: None for a whole map.
        source_box: `box` in the photo as it was sent; None where the server does not know its size any more.
        png: the projection as a picture; None where float32 was asked for.
        pixels: the projection unscaled; None where PNG was asked for.
        patch_png: the part of the photo within `box`.
        for_class: what the map was chosen for, if for a class.
        attribution: what the map adds to the score of that class.
    """

    map: int
    unit: Position | None
    activation: float
    box: Box
    source_box: Box | None
    png: bytes | None
    pixels: Float32Picture | None
    patch_png: bytes
    model: ModelIdentity
    rank: int
    total: int
    for_class: ClassScore | None = None
    attribution: float | None = None


@dataclass(frozen=True)
class InputSpec:
    height: int
    width: int
    resize: str
    shorter_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    name: str
    kind: str
    channels: int
    height: int
    width: int
    receptive_field: int
    stride: int
    offset: int


@dataclass(frozen=True)
class ParityFigure:
    precision: str
    inputs: str
    count: int
    max_difference: float
    top1_agreement: float


@dataclass(frozen=True)
class AccuracyFigure:
    precision: str
    count: int
    top1: float
    top5: float


@dataclass(frozen=True)
class EngineNotTaken:
    name: str
    reason: str


@dataclass(frozen=True)
class Engine:
    runtime: str
    provider: str
    precision: str
    max_batch_size: int
    threads: int
    name: str
    device: str
    instances: int
    not_taken: tuple[EngineNotTaken, ...]
    startup_seconds: float


@dataclass(frozen=True)
class ModelStatus:
    """One version of a model, and what the server does with it.

    Attributes:
        state: "loading", "ready", "failed" or "retiring"; "" for one that this client does not know.
        reason: of a version that failed, why; of one that loads, what that is at.
    """

    name: str
    version: str
    state: str
    reason: str
    fingerprint: str
    is_default: bool


@dataclass(frozen=True)
class ModelDescription:
    model: ModelIdentity
    architecture: str
    classes: tuple[ClassScore, ...]
    input: InputSpec
    layers: tuple[Layer, ...]
    parity: tuple[ParityFigure, ...]
    accuracy: tuple[AccuracyFigure, ...]
    engine: Engine
    feature_width: int
    projection_available: bool
    versions: tuple[ModelStatus, ...]


def classification(response: zfserve_pb2.ClassifyResponse) -> Classification:
    return Classification(
        classes=tuple(_mirror(ClassScore, entry) for entry in response.classes),
        model=_mirror(ModelIdentity, response.model),
        image_reference=ImageReference(response.image_reference),
        features=tuple(response.features),
        timings=_mirror(Timings, response.timings),
    )


def projection(response: zfserve_pb2.ProjectResponse) -> Projection:
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
    return _mirror(ModelStatus, entry, state=_STATES.get(entry.state, ""))


_STATES = {
    zfserve_pb2.MODEL_STATE_LOADING: "loading",
    zfserve_pb2.MODEL_STATE_READY: "ready",
    zfserve_pb2.MODEL_STATE_FAILED: "failed",
    zfserve_pb2.MODEL_STATE_RETIRING: "retiring",
}


def _mirror(result: type[_Result], message: Message, **mirrored: object) -> _Result:
    """`result` from a message with the same field names; those that hold messages themselves are given."""
    values = {field.name: getattr(message, field.name) for field in fields(result) if field.name not in mirrored}
    plain = {name: tuple(value) if _is_repeated(value) else value for name, value in values.items()}
    return result(**plain, **mirrored)


def _is_repeated(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
