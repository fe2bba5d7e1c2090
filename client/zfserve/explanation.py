"""Defines the result of `explain` as frozen dataclasses. `replies` makes it from the service's message.

Each field has the name that it has in `zfserve.proto`.
"""

import importlib
import sys
from array import array
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from zfserve.results import Box, ClassScore, ModelIdentity

ExplanationMethod: TypeAlias = Literal["integrated-gradients", "grad-cam"]
"""Chooses how an explanation is computed.

- "integrated-gradients" (Sundararajan et al. 2017) gives each unit what it adds to the score of the class. All units
  together add `score - baseline_score`.
- "grad-cam" (Selvaraju et al. 2017) weights each map by the mean gradient of the score over the map. Negative values
  are kept.
"""


@dataclass(frozen=True)
class HeatMap:
    """Holds one value for each place of a layer, summed over the layer's maps.

    Attributes:
        height: the number of rows.
        width: the number of columns.
        data: float32 (height, width), little endian: 4 * height * width bytes.
    """

    height: int
    width: int
    data: bytes

    def rows(self) -> tuple[tuple[float, ...], ...]:
        """Returns the values as one tuple for each row. It needs no numpy."""
        values = array("f", self.data)
        if sys.byteorder == "big":
            values.byteswap()
        return tuple(tuple(values[row * self.width : (row + 1) * self.width]) for row in range(self.height))

    def to_numpy(self) -> Any:
        """Returns the values as a read-only array, float32 (height, width).

        Raises:
            ModuleNotFoundError: numpy is not installed.
        """
        numpy = importlib.import_module("numpy")
        return numpy.frombuffer(self.data, "<f4").reshape(self.height, self.width)


@dataclass(frozen=True)
class Explanation:
    """Says which places of a photo speak for a class, and which speak against it.

    Attributes:
        for_class: the class, with the probability that the worker computed in float32.
        served_probability: the probability of the same class that the serving engine gives, in [0, 1]. `classify`
            returns this one.
        served_precision: the precision in which the serving engine computes, such as "fp32" or "int8".
        layer: the name of the layer.
        method: "integrated-gradients" or "grad-cam". "" is a method that this release of the client does not know.
        heatmap: the values. With integrated gradients they are what each place adds to `score`, in logits.
        score: the score of the class before the softmax.
        baseline_score: the score when no unit of the layer fires. None with Grad-CAM, which has no baseline.
        completeness_gap: `score - baseline_score` minus the sum of the heatmap. It is the error of the approximation,
            in logits. None with Grad-CAM.
        overlay_png: the heatmap drawn over the model's input, as an RGB PNG file. Blue is negative and red is positive.
        scale: the value of the strongest red of the overlay. The strongest blue is `-scale`.
        source_box: the region of the upright photo, as it was sent, that the heatmap covers. None if the server does
            not know the size of the photo.
        model: the model that was explained.
    """

    for_class: ClassScore
    served_probability: float
    served_precision: str
    layer: str
    method: str
    heatmap: HeatMap
    score: float
    baseline_score: float | None
    completeness_gap: float | None
    overlay_png: bytes
    scale: float
    source_box: Box | None
    model: ModelIdentity
