"""This module computes how much each unit of a layer adds to the score of a class. The worker calls it.

`attribute` uses integrated gradients (Sundararajan et al., ICML 2017). The baseline is a layer whose units are all
zero. The path leads from the baseline to the layer's activations. The contributions of all units sum to the difference
between the score at the activations and the score at the baseline. Plain gradients miss the cause of a confident
answer, because the score is flat there.

`grad_cam` (Selvaraju et al., ICCV 2017) weights each map by the mean gradient of the score over the map.

Both run only the nodes above the layer. Branches that do not pass the layer keep their values.
"""

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zfserve_model.explanation.deconvnet import OutOfRange, Position, Trace, UnitOfEach, activations_of, highest_maps
from zfserve_model.graph.execution import run
from zfserve_model.graph.ordering import needed_nodes

STEPS = 16
"""The number of points on the path from the baseline to the activations."""
MEMORY_BYTES = 128 << 20
"""The default limit of the activations of one batch of points. All 16 at once would take half a gigabyte above the
first layer of `zfnet`."""


@dataclass(frozen=True)
class ClassAttribution:
    """Holds what each unit of one layer adds to a class's score before the softmax.

    Attributes:
        layer: the tensor of the layer.
        index: the index of the class.
        probability: the probability of the class, in [0, 1].
        units: the contribution of each unit, float32 (channels, height, width), in logits.
        score, baseline_score: the score of the class, in logits: for the photo, and where all units of the layer are
            zero.
    """

    layer: str
    index: int
    probability: float
    units: Tensor
    score: float = math.nan
    baseline_score: float = math.nan

    @property
    def maps(self) -> Tensor:
        """The contribution of each whole map, float32 (channels,), in logits."""
        return self.units.flatten(1).sum(1)

    @property
    def heatmap(self) -> Tensor:
        """The contribution of each place, summed over the maps, float32 (height, width), in logits."""
        return self.units.sum(0)

    @property
    def completeness_gap(self) -> float:
        """The error of the approximation, in logits: what the score gains from the baseline, less all contributions."""
        return self.score - self.baseline_score - float(self.units.sum(dtype=torch.float64))

    def leading_maps(self, count: int) -> list[int]:
        """Returns the `count` maps that add most, the largest contribution first.

        Raises:
            OutOfRange: `count` is not between 1 and the layer's number of maps.
        """
        return highest_maps(self.maps, count, self.layer)

    def leading_units(self, maps: list[int]) -> UnitOfEach:
        """Selects the unit that adds most, in each of `maps`. Ties go to the first unit in row-major order."""
        width = self.units.shape[-1]
        places = self.units[maps].flatten(1).argmax(1).tolist()
        return UnitOfEach({index: Position(*divmod(place, width)) for index, place in zip(maps, places, strict=True)})


@dataclass(frozen=True)
class GradCam:
    """Holds the Grad-CAM of one layer for one class.

    Attributes:
        layer: the tensor of the layer.
        index: the index of the class.
        probability: the probability of the class, in [0, 1].
        score: the score of the class, in logits.
        heatmap: the weighted sum of the maps, float32 (height, width). Negative values are kept.
    """

    layer: str
    index: int
    probability: float
    score: float
    heatmap: Tensor


def attribute(
    trace: Trace, tensor: str, class_index: int | None = None, memory_bytes: int = MEMORY_BYTES
) -> ClassAttribution:
    """Runs the nodes above `tensor` forward and backward, at `STEPS` points between the baseline and the activations.

    Args:
        trace: the forward pass of the photo.
        tensor: a traced layer.
        class_index: the index of the class whose score is explained. None means the most probable class.
        memory_bytes: the limit of the activations of one batch of points. A single point may take more.

    Raises:
        UnknownLayer: the trace has no such layer.
        OutOfRange: the network has no such class.
        UnsupportedNode: a node above the layer cannot run. The message names it.
    """
    batches = attribute_in_batches(trace, tensor, class_index, memory_bytes)
    while True:
        try:
            next(batches)
        except StopIteration as done:
            attribution: ClassAttribution = done.value
            return attribution


def attribute_in_batches(
    trace: Trace, tensor: str, class_index: int | None = None, memory_bytes: int = MEMORY_BYTES
) -> Generator[None, None, ClassAttribution]:
    """Returns what `attribute` returns. Yields after each batch of points, so that a caller can pause or stop.

    Args and errors are those of `attribute`.
    """
    activations, above = activations_of(trace, tensor), _NetworkAbove(trace, tensor)
    index, probability, score = above.find_class(activations, class_index)
    with torch.no_grad():
        baseline_score = float(above.scores(torch.zeros_like(activations)[None])[0, index])
    batch = max(1, memory_bytes // above.bytes_per_image)
    total = torch.zeros_like(activations)
    fractions = (torch.arange(STEPS, dtype=activations.dtype, device=activations.device) + 0.5) / STEPS
    for part in torch.split(fractions, batch):
        total = total + above.gradients(part[:, None, None, None] * activations, index).sum(0)
        yield
    return ClassAttribution(tensor, index, probability, total / STEPS * activations, score, baseline_score)


def grad_cam(trace: Trace, tensor: str, class_index: int | None = None) -> GradCam:
    """Returns the maps of the layer, each weighted by the mean gradient of the class's score, and summed.

    Args and errors are those of `attribute`.
    """
    activations, above = activations_of(trace, tensor), _NetworkAbove(trace, tensor)
    index, probability, score = above.find_class(activations, class_index)
    weights = above.gradients(activations[None], index)[0].mean((1, 2))
    return GradCam(tensor, index, probability, score, torch.einsum("c,chw->hw", weights, activations))


class _NetworkAbove:
    """Runs the nodes between a layer and the scores."""

    def __init__(self, trace: Trace, tensor: str) -> None:
        self._graph, self._tensor = trace.graph, tensor
        self._fixed = _values_beside(trace, tensor)

    @property
    def bytes_per_image(self) -> int:
        """The memory that the activations of one image take, in bytes, at 4 bytes a value."""
        nodes = needed_nodes(self._graph.nodes, [self._graph.logits], {self._tensor, *self._fixed})
        outputs = (output for node in nodes for output in node.outputs)
        return max(1, 4 * sum(math.prod(self._graph.shapes.get(output, ())) for output in outputs))

    def scores(self, activations: Tensor) -> Tensor:
        """Returns the scores, float32 (N, K), of activations of the layer, float32 (N, channels, height, width)."""
        graph = self._graph
        parts = torch.split(activations, graph.fixed_batch or len(activations))
        return torch.cat([run(graph, self._inputs(part), [graph.logits])[graph.logits] for part in parts])

    def find_class(self, activations: Tensor, index: int | None) -> tuple[int, float, float]:
        """Returns the index of the class, its probability and its score, for the activations of one photo."""
        graph = self._graph
        with torch.no_grad():
            values = run(graph, self._inputs(activations[None]), [graph.logits, graph.probabilities])
        scores, probabilities = values[graph.logits].flatten(), values[graph.probabilities].flatten()
        if index is None:
            index = int(probabilities.argmax())
        if not 0 <= index < len(scores):
            raise OutOfRange(f"the network has classes 0 to {len(scores) - 1}, not {index}")
        return index, float(probabilities[index]), float(scores[index])

    def gradients(self, activations: Tensor, index: int) -> Tensor:
        """Returns the gradient of the class's score at each of the activations, in their shape."""
        with torch.inference_mode(False), torch.enable_grad():
            points = activations.clone().requires_grad_()  # tensors made in inference mode have no gradients
            (gradients,) = torch.autograd.grad(self.scores(points)[:, index].sum(), points)
        return gradients

    def _inputs(self, activations: Tensor) -> dict[str, Tensor]:
        beside = {name: value.expand(len(activations), *value.shape[1:]) for name, value in self._fixed.items()}
        return {self._tensor: activations, **beside}


def _values_beside(trace: Trace, tensor: str) -> Mapping[str, Tensor]:
    """Returns the tensors that nodes above the layer read from branches which do not pass the layer, by name."""
    graph = trace.graph
    dependent, read = {tensor}, set[str]()
    for node in needed_nodes(graph.nodes, [graph.logits, graph.probabilities], {tensor}):
        if not dependent.isdisjoint(node.inputs):
            dependent.update(node.outputs)
            read.update(name for name in node.inputs if name and name not in graph.constants)
    beside = read - dependent
    if not beside:
        return {}
    with torch.inference_mode(False), torch.no_grad():
        return run(graph, {graph.input: trace.image[None].clone()}, beside)
