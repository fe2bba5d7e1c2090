"""This module builds the three networks as PyTorch modules from one table.

Training, the deconvnet and export all work on `Network`.
Source: Zeiler & Fergus, ECCV 2014, section 3 and figure 3; Krizhevsky et al., NIPS 2012 (`alexnet`).
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

INPUT_SIZE = 224
POOL_SIZE = 6
"""The side of the last pooled map at `INPUT_SIZE`. The first hidden layer reads POOL_SIZE**2 positions."""

POOLED_STAGES = (1, 2, 5)
NORMALISED_STAGES = (1, 2)
HIDDEN_LAYERS = (6, 7)
BATCH_NORM_EPSILON = 1e-5
INITIAL_DEVIATION = 1e-2
"""The standard deviation of initial weights in a network with batch norm. Source: Zeiler & Fergus, section 3.1."""


@dataclass(frozen=True)
class Convolution:
    """Describes one convolution.

    Attributes:
        channels: the number of output channels.
        kernel: the side of the square kernel, in units of the layer below.
        stride, padding: the stride and the zero padding, in the same units.
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0


def _stages(first: Convolution, second: Convolution, *rest: int) -> tuple[Convolution, ...]:
    return (first, second, *(Convolution(channels, kernel=3, padding=1) for channels in rest))


# The paper prints no padding: 1, 0, 1 with ceil-mode pools reproduce its sizes 110, 55, 26, 13, 6.
_ZF_FIRST = Convolution(96, kernel=7, stride=2, padding=1)
_ZF_SECOND = Convolution(256, kernel=5, stride=2)

ARCHITECTURES: dict[str, tuple[Convolution, ...]] = {
    "zfnet": _stages(_ZF_FIRST, _ZF_SECOND, 512, 1024, 512),
    "zfnet-fig3": _stages(_ZF_FIRST, _ZF_SECOND, 384, 384, 256),
    "alexnet": _stages(
        Convolution(96, kernel=11, stride=4, padding=2),
        Convolution(256, kernel=5, padding=2),
        384,
        384,
        256,
    ),
}


@dataclass(frozen=True)
class NetworkSpec:
    """Holds everything that is needed to build a network. Checkpoints and bundles carry it.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        classes: the number of classes K, at least 1.
        hidden_width: the number of units in each of the two hidden fully connected layers.
        contrast_norm: True if stages 1 and 2 normalise across channels after the ReLU and before the pool. Public
            ImageNet weights need it.
        batch_norm: True if batch norm follows each convolution and hidden layer, which then have no bias. Only
            training uses it. `fold_batch_norm` removes it before weights are saved for serving.
    """

    architecture: str = "zfnet"
    classes: int = 10
    hidden_width: int = 4096
    contrast_norm: bool = False
    batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
        if self.classes < 1 or self.hidden_width < 1:
            raise ValueError(f"classes ({self.classes}) and hidden_width ({self.hidden_width}) must be at least 1")


class Network(nn.Module):
    """A network has a convolutional trunk of five stages and a head of three fully connected layers.

    `trunk` and `head` are plain sequences whose children carry the field's names (`conv1`, `relu1`, `norm1`,
    `pool1`, ... `fc8`), so every layer has the name that the layer table gives it.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = nn.Sequential(_trunk_layers(spec))
        self.head = nn.Sequential(_head_layers(spec))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits, float32 (N, K), of `images`, float32 (N, 3, 224, 224), RGB, normalised."""
        logits: Tensor = self.head(self.trunk(images))
        return logits

    def forward_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits, float32 (N, K), and the last hidden layer's activations, float32 (N, hidden_width)."""
        features = self.head[:-2](self.trunk(images))
        return self.head[-2:](features), features


def build_network(spec: NetworkSpec, generator: torch.Generator | None = None) -> Network:
    """Builds a network with random normal weights and zero biases.

    With batch norm the scale of the weights does not change the output. But it changes how much one step of training
    changes a filter. Large filters, most of all those of conv1, stay close to their initial noise. So the standard
    deviation is the small `INITIAL_DEVIATION`. Without batch norm the scale must carry the signal through the layers
    (He et al., ICCV 2015, fan-in normal).

    Raises:
        ValueError: the spec names no known architecture.
    """
    network = Network(spec)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if spec.batch_norm:
                nn.init.normal_(module.weight, std=INITIAL_DEVIATION, generator=generator)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _trunk_layers(spec: NetworkSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for stage, conv in enumerate(ARCHITECTURES[spec.architecture], start=1):
        layers[f"conv{stage}"] = nn.Conv2d(
            inputs, conv.channels, conv.kernel, conv.stride, conv.padding, bias=not spec.batch_norm
        )
        if spec.batch_norm:
            layers[f"bn{stage}"] = nn.BatchNorm2d(conv.channels, eps=BATCH_NORM_EPSILON)
        layers[f"relu{stage}"] = nn.ReLU()
        if spec.contrast_norm and stage in NORMALISED_STAGES:
            layers[f"norm{stage}"] = nn.LocalResponseNorm(size=5, k=2.0)
        if stage in POOLED_STAGES:
            layers[f"pool{stage}"] = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        inputs = conv.channels
    return layers


def _head_layers(spec: NetworkSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = ARCHITECTURES[spec.architecture][-1].channels * POOL_SIZE**2
    for number in HIDDEN_LAYERS:
        layers[f"fc{number}"] = nn.Linear(inputs, spec.hidden_width, bias=not spec.batch_norm)
        if spec.batch_norm:
            layers[f"bn{number}"] = nn.BatchNorm1d(spec.hidden_width, eps=BATCH_NORM_EPSILON)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"drop{number}"] = nn.Dropout(0.5)
        inputs = spec.hidden_width
    layers["fc8"] = nn.Linear(inputs, spec.classes)
    return layers


def fold_batch_norm(network: Network) -> Network:
    """Returns a network that computes the same without batch norm. Scale and shift move into the layers before it.

    The running statistics are used, so the result equals `network.eval()`. It is in evaluation mode and in float32.
    """
    if not network.spec.batch_norm:
        return network.eval()
    spec = replace(network.spec, batch_norm=False)
    weights = network.state_dict()
    plain = {name: tensor for name, tensor in weights.items() if name.startswith("head.fc8.")}
    convolutions = [(f"trunk.conv{n}", f"trunk.bn{n}") for n in range(1, len(ARCHITECTURES[spec.architecture]) + 1)]
    hidden = [(f"head.fc{n}", f"head.bn{n}") for n in HIDDEN_LAYERS]
    for layer, norm in convolutions + hidden:
        scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
        weight = weights[f"{layer}.weight"]
        plain[f"{layer}.weight"] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        plain[f"{layer}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    folded = Network(spec)
    folded.load_state_dict(plain)
    return folded.eval()
