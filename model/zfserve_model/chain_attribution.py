"""This module computes how much each feature map adds to the score of a class. The worker calls it.

The method is integrated gradients (Sundararajan et al., ICML 2017). The baseline is a layer whose units are all zero.
The path leads from the baseline to the layer's activations. The contributions of all units sum to the difference
between the score at the activations and the score at the baseline. Plain gradients miss the cause of a confident
answer, because the score is flat there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zfserve_model.chain_deconvnet import OutOfRange, Position, Trace, UnitOfEach, activations_of, highest_maps
from zfserve_model.networks import Network

STEPS = 16
"""The number of points on the path from the baseline to the activations."""
STEPS_PER_BATCH = 4
"""The points that run in one batch. All 16 at once would take half a gigabyte for the activations above conv1."""


@dataclass(frozen=True)
class ClassAttribution:
    """Holds what each unit of one layer adds to a class's score before the softmax.

    Attributes:
        layer: the name of the layer.
        index: the index of the class.
        probability: the probability of the class, in [0, 1].
        units: the contribution of each unit, float32 (channels, height, width), in logits.
    """

    layer: str
    index: int
    probability: float
    units: Tensor

    @property
    def maps(self) -> Tensor:
        """The contribution of each whole map, float32 (channels,), in logits."""
        return self.units.flatten(1).sum(1)

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


def attribute(network: Network, trace: Trace, layer: str, class_index: int | None = None) -> ClassAttribution:
    """Runs the layers above `layer` forward and backward, at `STEPS` points between the baseline and the activations.

    Args:
        network: the network that was traced, in evaluation mode.
        trace: the forward pass of the photo.
        layer: a layer of the trunk, by name.
        class_index: the index of the class whose score is explained. None means the most probable class.

    Raises:
        UnknownLayer: the trunk has no such layer.
        OutOfRange: the network has no such class.
        ValueError: the network is in training mode, so dropout would change the score.
    """
    if network.training:
        raise ValueError("the network is in training mode; call network.eval() first")
    if class_index is not None and not 0 <= class_index < network.spec.classes:
        raise OutOfRange(f"the network has classes 0 to {network.spec.classes - 1}, not {class_index}")
    activations = activations_of(trace, layer)
    above = list(trace.trunk.children())[list(trace.activations).index(layer) + 1 :]
    network_above = nn.Sequential(*above, network.head)
    with torch.inference_mode():
        logits: Tensor = network_above(activations[None])[0]
    index = int(logits.argmax()) if class_index is None else class_index
    gradient = _mean_gradient(network_above, activations, index)
    return ClassAttribution(layer, index, float(logits.softmax(0)[index]), gradient * activations)


def _mean_gradient(network: nn.Module, activations: Tensor, index: int) -> Tensor:
    """Returns the mean gradient of the score along the path, by the midpoint rule, in the shape of `activations`."""
    fractions = (torch.arange(STEPS, device=activations.device) + 0.5) / STEPS
    total = torch.zeros_like(activations)
    with torch.inference_mode(False), torch.enable_grad():
        end = activations.clone()  # tensors made in inference mode have no gradients
        for part in torch.split(fractions, STEPS_PER_BATCH):
            points = (part[:, None, None, None] * end).requires_grad_()
            (gradients,) = torch.autograd.grad(network(points)[:, index].sum(), points)
            total = total + gradients.sum(0)
    return total / STEPS
