"""Defines the results of `activations`, `ablate` and `transform`, and the kinds of their arguments.

These methods, and `occlude`, are the experiments of Zeiler & Fergus (ECCV 2014) as calls. Each field of a result has
the name that it has in `zfserve.proto`. `study_replies` makes the results from the messages. They need neither numpy
nor torch.
"""

import importlib
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from zfserve.results import ClassScore, ModelIdentity, Position

ActivationForm: TypeAlias = Literal["strongest", "maps", "grid"]
"""Chooses what `activations` returns of each feature map.

- "strongest" is the value and the position of the strongest unit.
- "maps" is every value.
- "grid" is the mean over each cell of a grid (adaptive average pooling).
"""


Replacement: TypeAlias = Literal["zero", "mean"] | Sequence[float]
"""Chooses what `ablate` puts in the place of a feature map.

- "zero" sets all units of the map to 0.
- "mean" sets them to their mean for this photo.
- a sequence has one value for each map of the layer, for example the means of the maps over a data set.
"""

TransformKind: TypeAlias = Literal[
    "vertical-translation",
    "horizontal-translation",
    "scale",
    "rotation",
    "horizontal-flip",
    "vertical-flip",
    "hue",
    "brightness",
]
"""Chooses what `transform` changes. Every change is made to the model's input, around its centre.

| kind | a step is | steps by default |
|---|---|---|
| "vertical-translation" | pixels downwards | -60 to 60 by 6 |
| "horizontal-translation" | pixels to the right | -60 to 60 by 6 |
| "scale" | the factor of enlargement | 1 to 1.8 by 0.04 |
| "rotation" | degrees, anticlockwise | 0 to 350 by 10 |
| "horizontal-flip" | 0 for the photo, 1 for its mirror image | 0, 1 |
| "vertical-flip" | 0 for the photo, 1 for the photo upside down | 0, 1 |
| "hue" | degrees on the circle of hues | 0 to 350 by 10 |
| "brightness" | the factor of all values | 0.2 to 1.8 by 0.1 |
"""

Border: TypeAlias = Literal["grey", "black", "edge", "reflect"]
"""Chooses what fills the places that a transformed photo no longer covers: mid-grey (128, 128, 128), black, the nearest
pixel of the photo, or the photo, mirrored."""

Resampling: TypeAlias = Literal["bilinear", "nearest", "bicubic"]
"""Chooses how the pixels of a transformed photo are interpolated."""


@dataclass(frozen=True)
class Computation:
    """Tells how the values of an answer were computed.

    Attributes:
        precision: the precision of the graph, such as "fp32" or "int8".
        engine: the engine, such as "onnx-cpu" or "openvino".
    """

    precision: str
    engine: str


@dataclass(frozen=True)
class LayerActivations:
    """Holds what one layer computed for one photo.

    Attributes:
        layer: the name of the layer.
        maps: the number of feature maps.
        height: the number of rows of each map: 1 for the form "strongest", and the height of the grid for "grid".
        width: the number of columns of each map.
        data: float32 (maps, height, width), little endian: 4 * maps * height * width bytes.
        rows: the row of the strongest unit of each map, from 0. Empty unless the form is "strongest".
        columns: the column of the strongest unit of each map, from 0. Empty unless the form is "strongest".
    """

    layer: str
    maps: int
    height: int
    width: int
    data: bytes
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()

    @property
    def values(self) -> "memoryview[float]":
        """Returns the values as a flat memoryview of floats, map by map and row by row. It needs no numpy."""
        data = self.data
        if sys.byteorder == "big":
            values = array("f", data)
            values.byteswap()
            data = values.tobytes()
        return memoryview(data).cast("f")

    @property
    def positions(self) -> tuple[Position, ...] | None:
        """Returns the position of the strongest unit of each map. None unless the form is "strongest"."""
        if not self.rows:
            return None
        return tuple(map(Position, self.rows, self.columns))

    def to_numpy(self) -> Any:
        """Returns the values as a read-only array, float32 (maps, height, width).

        Raises:
            ModuleNotFoundError: numpy is not installed.
        """
        numpy = importlib.import_module("numpy")
        return numpy.frombuffer(self.data, "<f4").reshape(self.maps, self.height, self.width)


@dataclass(frozen=True)
class PhotoActivations:
    """Holds what the layers computed for one photo.

    Attributes:
        image: the index of the photo in the call, from 0.
        best: the most probable class of the photo.
        layers: the values of each layer by the layer's own name, in the order of the call. A stage and "last" stand
            under the name of the layer that they mean.
        computation: how the values were computed.
        model: the model that answered.
    """

    image: int
    best: ClassScore
    layers: dict[str, LayerActivations]
    computation: Computation
    model: ModelIdentity


@dataclass(frozen=True)
class AblationStep:
    """Holds the probabilities of all classes while feature maps are replaced by a constant.

    Attributes:
        rank: the number of the group of maps, from 0.
        total: the number of groups.
        maps: the maps of the group.
        attribution: what the map adds to the score of `for_class`, in logits. None if `for_class` was not given.
        alone: float32 (K,), the probabilities with this group alone replaced, in the order of the model's outputs.
        cumulative: float32 (K,), the probabilities with this group and all groups before it replaced.
        untouched: float32 (K,), the probabilities without any replacement. They are the same in every step.
        for_class: the class that the maps were chosen for, with its probability. None if `for_class` was not given.
        layer: the name of the layer.
        computation: how the values were computed.
        model: the model that answered.
    """

    rank: int
    total: int
    maps: tuple[int, ...]
    attribution: float | None
    alone: tuple[float, ...]
    cumulative: tuple[float, ...]
    untouched: tuple[float, ...]
    for_class: ClassScore | None
    layer: str
    computation: Computation
    model: ModelIdentity


@dataclass(frozen=True)
class FeatureDistance:
    """Tells how far the activations of a layer have moved from those of the untouched photo.

    Attributes:
        layer: the name of the layer. "features" is the last hidden layer.
        distance: the Euclidean distance.
        relative: the distance over the Euclidean norm of the untouched photo's activations. 0 if that norm is 0.
    """

    layer: str
    distance: float
    relative: float


@dataclass(frozen=True)
class TransformStep:
    """Holds what the network says of a photo at one step of a transformation.

    Attributes:
        rank: the number of the step, from 0.
        total: the number of steps.
        step: the step, in the unit of its kind.
        for_class: the class, with its probability at this step.
        best: the most probable class at this step.
        low: how far the activations of the low layer have moved. None if the network has no layer that can be read.
        high: how far the activations of the last hidden layer have moved. A network without one has its last layer
            here, or None if no layer can be read.
        picture_png: the transformed input as an RGB PNG file. None unless the call asked for `pictures=True`.
        untouched: the class, with its probability for the untouched photo. It is the same in every step.
        kind: what changes. "" is a kind that this release of the client does not know.
        border: what fills the places that the photo no longer covers.
        resampling: how pixels are interpolated.
        computation: how the values were computed.
        model: the model that answered.
    """

    rank: int
    total: int
    step: float
    for_class: ClassScore
    best: ClassScore
    low: FeatureDistance | None
    high: FeatureDistance | None
    picture_png: bytes | None
    untouched: ClassScore
    kind: str
    border: str
    resampling: str
    computation: Computation
    model: ModelIdentity
