"""Which feature maps speak for a class: what each adds to the class's score. Used by the worker.

The measure is that of integrated gradients (Sundararajan et al., ICML 2017) from a silent layer, all of whose units are
zero, to the layer as it is: what all units add together is what the score gains on the way. Plain gradients miss what
drove a confident answer, as the score has stopped rising there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zfserve_model.deconvnet import OutOfRange, Position, Trace, UnitOfEach, activations_of, highest_maps
from zfserve_model.networks import Network

STEPS = 16
"""From silence to the layer as it is."""
STEPS_TOGETHER = 4
"""In one batch: the activations of all 16 above conv1 would take half a gigabyte."""


@dataclass(frozen=True)
class ClassAttribution:
    """What the units of one layer add to a class's score before the softmax.

    Attributes:
        layer: its name.
        index: of the class.
        probability: that the network gives it.
        units: float32 (channels, height, width).
    """

    layer: str
    index: int
    probability: float
    units: Tensor

    @property
    def maps(self) -> Tensor:
        """Of whole maps: float32 (channels,)."""
        return self.units.flatten(1).sum(1)

    def leading_maps(self, count: int) -> list[int]:
        """Those that add most, the first of them first.

        Raises:
            OutOfRange: `count` is not within 1 and the layer's number of maps.
        """
        return highest_maps(self.maps, count, self.layer)

    def leading_units(self, maps: list[int]) -> UnitOfEach:
        """In each of `maps` the unit that adds most; of equals, the first in reading order."""
        width = self.units.shape[-1]
        places = self.units[maps].flatten(1).argmax(1).tolist()
        return UnitOfEach({index: Position(*divmod(place, width)) for index, place in zip(maps, places, strict=True)})


def attribute(network: Network, trace: Trace, layer: str, class_index: int | None = None) -> ClassAttribution:
    """Run the network on from `layer` of `trace`, and back, at each of `STEPS` places on the way from silence.

    Args:
        network: the one that was traced, in evaluation mode.
        class_index: of the score; None: of the most probable class.

    Raises:
        UnknownLayer: the trunk has no such layer.
        OutOfRange: the network has no such class.
        ValueError: the network is in training mode, in which dropout would be part of the score.
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
    """Of the score, over the way from silence; by the midpoint rule."""
    fractions = (torch.arange(STEPS, device=activations.device) + 0.5) / STEPS
    total = torch.zeros_like(activations)
    with torch.inference_mode(False), torch.enable_grad():
        end = activations.clone()  # of tensors made in inference mode there are no gradients
        for part in torch.split(fractions, STEPS_TOGETHER):
            on_the_way = (part[:, None, None, None] * end).requires_grad_()
            (gradients,) = torch.autograd.grad(network(on_the_way)[:, index].sum(), on_the_way)
            total = total + gradients.sum(0)
    return total / STEPS
