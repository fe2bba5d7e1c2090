"""Defines the descriptions of models as frozen dataclasses. `replies` makes them from the service's messages.

Each field has the name that it has in `zfserve.proto`.
"""

from dataclasses import dataclass

from zfserve.results import ClassScore, ModelIdentity


@dataclass(frozen=True)
class InputSpec:
    """Describes the input of a model, and the rule by which the server turns a photo into it.

    Attributes:
        height: the height of the input in pixels.
        width: the width of the input in pixels.
        resize: "squash" scales both sides of the photo to the input. "crop" scales the shorter side to `shorter_side`
            and cuts out the centre.
        shorter_side: the length in pixels to which "crop" scales the shorter side.
        mean: float32 (3,), RGB, subtracted from values that are scaled to [0, 1].
        std: float32 (3,), RGB, by which the differences are divided.
        interpolation: the interpolation of the resize: "bilinear" or "bicubic".
    """

    height: int
    width: int
    resize: str
    shorter_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class Layer:
    """Describes a layer whose feature maps can be projected.

    Attributes:
        name: the name that `project` takes, such as "conv5".
        kind: the kind of operation that computes it, such as "conv", "relu", "norm", "pool", "add" or "concat".
        channels: the number of feature maps.
        height: the number of rows of units in a map.
        width: the number of columns of units in a map.
        receptive_field: the number of rows that a unit sees, in input pixels. Padding counts.
        stride: the distance between neighbouring units of a column, in input pixels.
        offset: the input row where the receptive field of unit 0 begins. It is negative if the field begins in the
            padding.
        receptive_field_width: the number of columns that a unit sees, in input pixels. Padding counts.
        stride_width: the distance between neighbouring units of a row, in input pixels.
        offset_width: the input column where the receptive field of unit 0 begins.
        stage: the name of the stage, such as "stage4", which `project` takes as well. "" if the server names none.
        whole_image: True if every unit sees the whole image, for example behind a squeeze-and-excitation gate.
        rule: the rule of a projection from this layer, as in `Projection.rule`.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    receptive_field: int
    stride: int
    offset: int
    receptive_field_width: int
    stride_width: int
    offset_width: int
    stage: str = ""
    whole_image: bool = False
    rule: str = "paper"


@dataclass(frozen=True)
class ParityFigure:
    """Compares the exported network with the network that it was exported from, as measured at export.

    Attributes:
        precision: the precision of the exported network, such as "fp32" or "int8".
        inputs: the inputs of the comparison: "photos" or "noise".
        count: the number of inputs.
        max_difference: the largest absolute difference of any probability, in [0, 1].
        top1_agreement: the share of inputs for which both networks have the same most probable class, in [0, 1].
    """

    precision: str
    inputs: str
    count: int
    max_difference: float
    top1_agreement: float


@dataclass(frozen=True)
class AccuracyFigure:
    """Holds the accuracy on a validation set, as measured at export.

    Attributes:
        precision: the precision of the exported network, such as "fp32" or "int8".
        count: the number of photos.
        top1: the share of photos whose class was the most probable one, in [0, 1].
        top5: the share of photos whose class was among the five most probable ones, in [0, 1].
    """

    precision: str
    count: int
    top1: float
    top5: float


@dataclass(frozen=True)
class EngineNotTaken:
    """Names an engine that the server considered and did not choose.

    Attributes:
        name: the engine's name as `zfserve serve --engine` takes it.
        reason: a sentence that says why the engine cannot serve here, or which engine was chosen before it.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Engine:
    """Describes the engine that runs the model.

    Attributes:
        runtime: the library, such as "onnxruntime".
        provider: the library's backend, such as "CPUExecutionProvider".
        precision: the precision of the computation, such as "fp32" or "int8".
        max_batch_size: the largest number of photos in one batch.
        threads: the number of threads that compute.
        name: the engine's name as `zfserve serve --engine` takes it, such as "onnx-cpu".
        device: the device that computes: "CPU", or the name of the graphics card.
        instances: the number of engines that run side by side on the device.
        not_taken: the engines that the server considered before this one, in the order of preference. Empty if the
            engine was asked for by name.
        startup_seconds: the time from finding the version to serving its first request, in seconds.
    """

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
    """Describes one version of a model and its state on the server.

    Attributes:
        name: the model's name.
        version: the version as text, such as "3".
        state: "loading" (the server prepares it), "ready" (it answers requests), "failed" (the server refused it, and
            tries again when its files change) or "retiring" (a newer version took its place, and it only finishes what
            it accepted). "" is a state that this release of the client does not know.
        reason: a sentence. It says why a version failed, what a loading version is doing, or why changed files in the
            folder of a ready version do not replace it. Otherwise it is "".
        fingerprint: a digest of the network in hexadecimal digits. "" until the server has read the manifest.
        is_default: True if a request that names no model gets this version.
    """

    name: str
    version: str
    state: str
    reason: str
    fingerprint: str
    is_default: bool


@dataclass(frozen=True)
class ModelDescription:
    """Describes one version of a model: its input, its layers, its classes, its engine and its figures.

    Attributes:
        model: the name, version and fingerprint.
        architecture: the network's architecture, such as "zfnet" or "resnet18".
        classes: all classes in the order of the model's outputs. Each probability is 0.
        input: the input of the model.
        layers: the layers that can be projected, from the input upwards.
        parity: the comparisons with the network that the model was exported from.
        accuracy: the accuracy on a validation set. Empty if none was given at export.
        engine: the engine that runs the model.
        feature_width: the number of values that enter the last linear layer, which is the length of
            `Classification.features`. 0 if the model returns no features.
        projection_available: True if a worker is connected, so that `project` can be answered.
        versions: all versions of this model that the server knows of.
        source: the source that the model was exported from, such as "pytorchcv:resnet18" or "resnet50.onnx". "" if
            the server does not name it.
        projection_obstacle: a sentence that names the node which no projection can pass. "" if the whole network can
            be projected.
        fixed_batch_size: the batch size of a network that takes no other batch size. 0 if it takes any.
    """

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
    source: str = ""
    projection_obstacle: str = ""
    fixed_batch_size: int = 0
