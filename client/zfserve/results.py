"""Defines the results of `classify` and `project` as frozen dataclasses. `replies` makes them from the messages.

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
        fingerprint: a digest of the network in hexadecimal digits. Models with equal fingerprints are the same
            network.
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
        features: float32 (F,), the activations that enter the last linear layer. F is
            `ModelDescription.feature_width`. Empty unless the call asked for `features=True`.
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
        layer: the name of the layer, also where the call named a stage or "last".
        rule: "paper" if all activations below the layer are ReLUs. "extended" if some are other functions, whose
            backward step rectifies the signal too. This is a convention that is not in the paper. "" is a rule that
            this release of the client does not know.
        extended_nodes: the names of the nodes below the layer whose backward step is such a convention. Empty if
            `rule` is "paper".
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
    layer: str = ""
    rule: str = "paper"
    extended_nodes: tuple[str, ...] = ()
