"""The layer table describes every layer of a network's trunk: its shape and its receptive field.

Export writes the table into the bundle's manifest. Receptive fields are computed as in Araujo et al., "Computing
Receptive Fields of Convolutional Neural Networks", Distill 2019.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from zfserve_model.networks import INPUT_SIZE, Network

LayerKind = Literal["conv", "relu", "norm", "pool"]


@dataclass(frozen=True)
class LayerRow:
    """Describes one layer of the trunk.

    Unit i of the layer sees the input pixels from `offset + i * stride` up to, but not including,
    `offset + i * stride + receptive_field`. The same holds along rows and columns, and i counts from 0. Pixels outside
    of the image are padding.

    Attributes:
        channels, height, width: the shape of the layer's output at `INPUT_SIZE`.
        receptive_field: the side of the square that one unit sees, in input pixels.
        stride: the distance between neighbouring units, in input pixels.
        offset: the first input pixel that unit 0 sees. It is negative if that pixel lies in the padding.
    """

    name: str
    kind: LayerKind
    channels: int
    height: int
    width: int
    receptive_field: int
    stride: int
    offset: int


@dataclass(frozen=True)
class _Geometry:
    """Holds the kernel size, stride and padding of a layer, in units of the layer below. Rows and columns are alike."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0


@torch.no_grad()
def layer_table(network: Network) -> tuple[LayerRow, ...]:
    """Returns the trunk's layers in forward order.

    Raises:
        ValueError: the network still has batch norm, which `fold_batch_norm` removes.
    """
    rows: list[LayerRow] = []
    receptive_field, stride, offset = 1, 1, 0
    # An empty batch gives the shapes of the forward pass without its arithmetic. The meta device would do so too, but
    # it imports 800 modules, SymPy and `torch._dynamo` among them, which takes a third of a worker's start.
    activations = next(network.parameters()).new_empty(0, 3, INPUT_SIZE, INPUT_SIZE)
    for name, module in network.trunk.named_children():
        kind, geometry = layer_kind(module), _geometry(module)
        activations = module(activations)
        offset -= geometry.padding * stride
        receptive_field += (geometry.kernel - 1) * stride
        stride *= geometry.stride
        _, channels, height, width = activations.shape
        rows.append(LayerRow(name, kind, channels, height, width, receptive_field, stride, offset))
    return tuple(rows)


def layer_kind(module: nn.Module) -> LayerKind:
    """Returns the kind of a module of the trunk.

    Raises:
        ValueError: a projection cannot pass through the module. Batch norm is an example.
    """
    match module:
        case nn.Conv2d():
            return "conv"
        case nn.ReLU():
            return "relu"
        case nn.LocalResponseNorm():
            return "norm"
        case nn.MaxPool2d():
            return "pool"
        case nn.BatchNorm2d():
            raise ValueError("the network still has batch norm; call fold_batch_norm first")
        case _:
            raise ValueError(f"a trunk cannot hold a layer of type {type(module).__name__}")


def _geometry(module: nn.Module) -> _Geometry:
    match module:
        case nn.Conv2d():
            assert isinstance(module.padding, tuple)
            return _Geometry(module.kernel_size[0], module.stride[0], module.padding[0])
        case nn.MaxPool2d():
            assert isinstance(module.kernel_size, int)
            assert isinstance(module.stride, int)
            return _Geometry(module.kernel_size, module.stride)
        case _:
            return _Geometry()
