"""Defines the results of the clients' methods as frozen dataclasses. `replies` makes them from the service's messages.

Each field has the name that it has in `zfserve.proto`, but `Projection.pixels` is `float32` there. Results compare by
value, and need neither numpy nor torch.
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassScore:
    """Describes one class of the model, with the probability that a photo shows it.

    Attributes:
        label: the name for people, such as "French horn".
        class_id: the name in the data set, such as "n03394916".
        index: the place of the class among the model's outputs, from 0.
        probability: the softmax output, in [0, 1]. The probabilities of all classes add up to 1. It is 0 in
            `ModelDescription.classes`, which belongs to no photo.
    """

    label: str
    class_id: str
    index: int
    probability: float


@dataclass(frozen=True)
class ModelIdentity:
    """Identifies the exact model that answered.

    Attributes:
        name: the model's name, such as "zfnet".
        version: the version as text, such as "3".
        fingerprint: a digest of the weights in hexadecimal digits. Models with equal fingerprints have the same
            weights.
    """

    name: str
    version: str
    fingerprint: str


@dataclass(frozen=True)
class Timings:
    """Tells how much time the server spent on one photo.

    Attributes:
        decode_ms: decoding and resizing the photo, in milliseconds.
        queue_ms: waiting for the engine, in milliseconds.
        inference_ms: running the network on the whole batch, in milliseconds.
        batch_size: the number of photos in that batch, at least 1.
    """

    decode_ms: float
    queue_ms: float
    inference_ms: float
    batch_size: int


@dataclass(frozen=True)
class ImageReference:
    """Names a photo that the server still holds. Pass it to `project` in place of the photo, so that
    the photo is not sent again.

    A reference expires some time after its last use (10 minutes by default), or when many other photos have come. Only
    the server that returned it knows it. An unknown or expired reference raises `NotFound`.

    Attributes:
        value: the reference as the server gave it. Treat it as opaque.
    """

    value: str


@dataclass(frozen=True)
class Classification:
    """Holds the most probable classes of one photo.

    Attributes:
        classes: the classes, most probable first. There are `top_k` of them.
        model: the model that answered.
        image_reference: names the photo in a later `project`.
        features: float32 (F,), the activations of the last hidden layer. F is `ModelDescription.feature_width`. Empty
            unless the call asked for `features=True`.
        timings: the time that the server spent.
    """

    classes: tuple[ClassScore, ...]
    model: ModelIdentity
    image_reference: ImageReference
    features: tuple[float, ...]
    timings: Timings


@dataclass(frozen=True)
class Position:
    """Names the place of a unit in a feature map.

    Attributes:
        row: the row, from 0 at the top.
        column: the column, from 0 at the left.
    """

    row: int
    column: int


@dataclass(frozen=True)
class Box:
    """Describes a rectangle of pixels: the columns left <= x < right and the rows top <= y < bottom.

    Attributes:
        left: the first column.
        top: the first row.
        right: the column after the last one.
        bottom: the row after the last one.
    """

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Float32Picture:
    """Holds a projection that is not scaled for the eye. Its values lie in the space of the normalised input.

    Attributes:
        height: the number of rows.
        width: the number of columns.
        data: float32 (3, height, width), RGB, little endian: 12 * height * width bytes.
    """

    height: int
    width: int
    data: bytes

    def to_numpy(self) -> Any:
        """Returns the values as a read-only array, float32 (3, height, width), RGB.

        This is the only method of the client that needs numpy.

        Raises:
            ModuleNotFoundError: numpy is not installed.
        """
        numpy = importlib.import_module("numpy")
        return numpy.frombuffer(self.data, "<f4").reshape(3, self.height, self.width)


@dataclass(frozen=True)
class Projection:
    """Holds the pixels that drove one feature map.

    Attributes:
        map: the feature map, from 0.
        unit: the unit that was projected. None if all units of the map were projected together (`unit="whole"`).
        activation: the activation of that unit, or the highest one of a whole map.
        box: the pixels of the model's input that the unit can see, cut off at the edges of the input. `png`, `pixels`
            and `patch_png` cover exactly this region.
        source_box: the same region in pixels of the upright photo as it was sent. None if the server no longer knows
            the size of the photo.
        png: the projection as an RGB PNG file. It is scaled for the eye: mid-grey is zero, and the contrast is robust
            against outliers. None if `format="float32"` was asked for.
        pixels: the projection unscaled. None if `format="png"` was asked for.
        patch_png: the part of the model's input within `box`, as a PNG file.
        model: the model that was projected.
        rank: the place of this result in the stream, from 0.
        total: the number of results in the stream.
        for_class: the class that the map was chosen for, with its probability. None if `for_class` was not given.
        attribution: what the map adds to the score of `for_class` before the softmax. It can be negative. None if
            `for_class` was not given.
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
    """Describes the input of a model, and the rule by which the server turns a photo into it.

    Attributes:
        height: the height of the input in pixels.
        width: the width of the input in pixels.
        resize: "squash" scales both sides of the photo to the input. "crop" scales the shorter side to `shorter_side`
            and cuts out the centre.
        shorter_side: the length in pixels to which "crop" scales the shorter side.
        mean: float32 (3,), RGB, subtracted from values that are scaled to [0, 1].
        std: float32 (3,), RGB, by which the differences are divided.
    """

    height: int
    width: int
    resize: str
    shorter_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """Describes a layer whose feature maps can be projected.

    Attributes:
        name: the name that `project` takes, such as "conv5".
        kind: "conv", "relu", "norm" or "pool".
        channels: the number of feature maps.
        height: the number of rows of units in a map.
        width: the number of columns of units in a map.
        receptive_field: the side of the square that a unit sees, in input pixels.
        stride: the distance between neighbouring units, in input pixels.
        offset: the input column where the receptive field of unit 0 begins. It is negative if the field begins in the
            padding.
    """

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
        fingerprint: a digest of the weights in hexadecimal digits. "" until the server has read the manifest.
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
        architecture: the network's architecture, such as "zfnet", "zfnet-fig3" or "alexnet".
        classes: all classes in the order of the model's outputs. Each probability is 0.
        input: the input of the model.
        layers: the layers that can be projected, from the input upwards.
        parity: the comparisons with the network that the model was exported from.
        accuracy: the accuracy on a validation set. Empty if none was given at export.
        engine: the engine that runs the model.
        feature_width: the number of units in the last hidden layer, which is the length of `Classification.features`.
        projection_available: True if a worker is connected, so that `project` can be answered.
        versions: all versions of this model that the server knows of.
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
