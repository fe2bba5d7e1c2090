"""What every layer of a network's trunk looks like and what its units see, computed from the modules.

Called by export (the table goes into the bundle's manifest) and by the deconvnet's tests. The arithmetic of
receptive fields is that of Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zfserve_model.networks import INPUT_SIZE, Network

LayerKind = Literal["conv", "relu", "norm", "pool"]


@dataclass(frozen=True)
class LayerRow:
    """One layer of the trunk.

    Unit i of the layer (counted from 0, along rows and columns alike) sees the input pixels from `offset + i * stride`
    up to, not including, `offset + i * stride + receptive_field`; those outside of the image are padding.

    Attributes:
        channels, height, width: of the layer's output at `INPUT_SIZE`.
        receptive_field: side of the square one unit sees, in input pixels.
        stride: input pixels between neighbouring units.
        offset: first input pixel that unit 0 sees; negative inside the padding.
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
class _Reach:
    """How far a layer lets one of its units see in the layer below, the same along rows and columns."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0


def layer_table(network: Network) -> tuple[LayerRow, ...]:
    """The trunk's layers from the input upwards.

    Raises:
        ValueError: the network still has batch norm, which `fold_batch_norm` removes.
    """
    rows: list[LayerRow] = []
    receptive_field, stride, offset = 1, 1, 0
    channels, one = 3, torch.zeros(1, 1, INPUT_SIZE, INPUT_SIZE)
    for name, module in network.trunk.named_children():
        kind, reach = layer_kind(module), _reach(module)
        channels, one = _channels_after(module, channels), _one_channel_after(module, one)
        offset -= reach.padding * stride
        receptive_field += (reach.kernel - 1) * stride
        stride *= reach.stride
        height, width = one.shape[2:]
        rows.append(LayerRow(name, kind, channels, height, width, receptive_field, stride, offset))
    return tuple(rows)


def layer_kind(module: nn.Module) -> LayerKind:
    """Which kind of layer a module of the trunk is.

    Raises:
        ValueError: it is none that a projection can walk through, such as batch norm.
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
            raise ValueError("the network still has batch norm: pass it through fold_batch_norm first")
        case _:
            raise ValueError(f"a trunk has no place for {type(module).__name__}")


def _reach(module: nn.Module) -> _Reach:
    match module:
        case nn.Conv2d():
            assert isinstance(module.padding, tuple)
            return _Reach(module.kernel_size[0], module.stride[0], module.padding[0])
        case nn.MaxPool2d():
            assert isinstance(module.kernel_size, int)
            assert isinstance(module.stride, int)
            return _Reach(module.kernel_size, module.stride)
        case _:
            return _Reach()


def _channels_after(module: nn.Module, channels: int) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else channels


def _one_channel_after(module: nn.Module, one: Tensor) -> Tensor:
    """Of the size that the forward pass gives it, by PyTorch's own arithmetic.

    The meta device would have the whole shape and compute nothing, but brings 800 modules with it (SymPy,
    `torch._dynamo`), which would be a third of a worker's start.
    """
    match module:
        case nn.Conv2d():
            assert isinstance(module.padding, tuple)
            return functional.conv2d(one, torch.zeros(1, 1, *module.kernel_size), None, module.stride, module.padding)
        case nn.MaxPool2d():
            pooled: Tensor = module(one)
            return pooled
        case _:
            return one
