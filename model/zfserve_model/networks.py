"""This module builds the three networks and their variants as PyTorch modules from one table.

A variant lacks some layers or has other widths, as in table 3 of the paper. Training works on `Network`.
Everything else works on the ONNX graph that the export makes of it.
Source: Zeiler & Fergus, ECCV 2014, section 3 and figure 3; Krizhevsky et al., NIPS 2012 (`alexnet`).
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

INPUT_SIZE = 224

POOLED_STAGES = (1, 2, 5)
POOL_KERNEL, POOL_STRIDE = 3, 2
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


CONVOLUTIONS = tuple(f"conv{stage}" for stage in range(1, 6))
REMOVABLE_LAYERS = (*CONVOLUTIONS, *(f"fc{number}" for number in HIDDEN_LAYERS))
"""The layers that a variant may lack, in their order. A network needs at least one of the convolutions."""


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
        removed: the layers of `REMOVABLE_LAYERS` that the network lacks, in that order. Their batch norm, ReLU,
            contrast norm and dropout go with them. The max-pool of a stage stays.
        maps: the numbers of maps of the five convolutions. Empty means those of the architecture. The number of a
            removed convolution has no effect.
    """

    architecture: str = "zfnet"
    classes: int = 10
    hidden_width: int = 4096
    contrast_norm: bool = False
    batch_norm: bool = False
    removed: tuple[str, ...] = ()
    maps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
        if self.classes < 1 or self.hidden_width < 1:
            raise ValueError(f"classes ({self.classes}) and hidden_width ({self.hidden_width}) must be at least 1")
        if unknown := [name for name in self.removed if name not in REMOVABLE_LAYERS]:
            raise ValueError(f"there is no layer {unknown[0]!r} to remove; choose from {', '.join(REMOVABLE_LAYERS)}")
        if set(CONVOLUTIONS) <= set(self.removed):
            raise ValueError("a network without any convolution has no maps to show; keep at least one of them")
        if self.maps and (len(self.maps) != len(CONVOLUTIONS) or min(self.maps) < 1):
            raise ValueError(f"the numbers of maps {list(self.maps)} must be five numbers of at least 1")
        # JSON has no tuples, and equal networks must have equal specs.
        object.__setattr__(self, "removed", tuple(name for name in REMOVABLE_LAYERS if name in self.removed))
        object.__setattr__(self, "maps", tuple(self.maps))

    @property
    def convolutions(self) -> dict[int, Convolution]:
        """Returns the convolutions that the network has, by the number of their stage."""
        table = ARCHITECTURES[self.architecture]
        widths = self.maps or tuple(conv.channels for conv in table)
        return {
            stage: replace(conv, channels=width)
            for stage, (conv, width) in enumerate(zip(table, widths, strict=True), start=1)
            if f"conv{stage}" not in self.removed
        }

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Returns the numbers of the hidden fully connected layers that the network has."""
        return tuple(number for number in HIDDEN_LAYERS if f"fc{number}" not in self.removed)

    @property
    def last_map_side(self) -> int:
        """Returns the side of the last pooled map at `INPUT_SIZE`. It is 6 unless conv1 or conv2 is removed."""
        side = INPUT_SIZE
        for stage in range(1, len(CONVOLUTIONS) + 1):
            if conv := self.convolutions.get(stage):
                side = (side + 2 * conv.padding - conv.kernel) // conv.stride + 1
            if stage in POOLED_STAGES:
                side = math.ceil((side - POOL_KERNEL) / POOL_STRIDE) + 1
        return side

    @property
    def flat_width(self) -> int:
        """Returns the number of values of the last pooled maps, which the first fully connected layer reads."""
        return [*self.convolutions.values()][-1].channels * self.last_map_side**2

    @property
    def feature_width(self) -> int:
        """Returns the number of values that the output layer reads."""
        return self.hidden_width if self.hidden_layers else self.flat_width

    @property
    def description(self) -> str:
        """Returns the architecture with what differs from it: "zfnet-fig3 without conv3, conv4"."""
        changes = [f" with {'-'.join(map(str, self.maps))} maps"] if self.maps else []
        changes += [f" without {', '.join(self.removed)}"] if self.removed else []
        return self.architecture + ",".join(changes)

    @property
    def name(self) -> str:
        """Returns the description without spaces and commas, as in the name of a bundle."""
        return self.description.replace(",", "").replace(" ", "-")


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
        """Returns the logits, float32 (N, K), and what the output layer reads, float32 (N, feature_width)."""
        # Dropout passes its input through in evaluation mode. Only hidden layers have one.
        end = -2 if self.spec.hidden_layers else -1
        features = self.head[:end](self.trunk(images))
        return self.head[end:](features), features


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


def count_parameters(spec: NetworkSpec) -> int:
    """Returns the number of weights and biases of a network as it is served, without batch norm."""
    with torch.device("meta"):  # has shapes, but no memory
        return sum(parameter.numel() for parameter in Network(replace(spec, batch_norm=False)).parameters())


def _trunk_layers(spec: NetworkSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for stage in range(1, len(CONVOLUTIONS) + 1):
        if conv := spec.convolutions.get(stage):
            layers[f"conv{stage}"] = nn.Conv2d(
                inputs, conv.channels, conv.kernel, conv.stride, conv.padding, bias=not spec.batch_norm
            )
            if spec.batch_norm:
                layers[f"bn{stage}"] = nn.BatchNorm2d(conv.channels, eps=BATCH_NORM_EPSILON)
            layers[f"relu{stage}"] = nn.ReLU()
            if spec.contrast_norm and stage in NORMALISED_STAGES:
                layers[f"norm{stage}"] = nn.LocalResponseNorm(size=5, k=2.0)
            inputs = conv.channels
        if stage in POOLED_STAGES:
            layers[f"pool{stage}"] = nn.MaxPool2d(POOL_KERNEL, POOL_STRIDE, ceil_mode=True)
    return layers


def _head_layers(spec: NetworkSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = spec.flat_width
    for number in spec.hidden_layers:
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
    convolutions = [(f"trunk.conv{n}", f"trunk.bn{n}") for n in spec.convolutions]
    hidden = [(f"head.fc{n}", f"head.bn{n}") for n in spec.hidden_layers]
    for layer, norm in convolutions + hidden:
        scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
        weight = weights[f"{layer}.weight"]
        plain[f"{layer}.weight"] = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        plain[f"{layer}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    folded = Network(spec)
    folded.load_state_dict(plain)
    return folded.eval()
