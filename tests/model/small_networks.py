"""Defines nine small networks, one for each kind of block that the field uses. Their weights are random.

They stand for the zoo in `make test`: residual, depthwise with ReLU6, dense, squeeze-and-excitation, channel shuffle,
inception, SiLU with a gate as in EfficientNet, local response norm, and ConvNeXt. The input is float32 (N, 3, 32, 32).
"""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SIZE = 32
CLASSES = 7

Activation = Callable[[Tensor], Tensor]


def unit(
    before: int, after: int, kernel: int | tuple[int, int] = 3, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Returns a convolution, batch norm and, unless `act` is False, a ReLU."""
    padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(after),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(before, after, stride=stride), unit(after, after, act=False))
        self.shortcut = unit(before, after, 1, stride, act=False) if stride > 1 else nn.Identity()
        self.rectify: Activation = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.rectify(self.body(x) + self.shortcut(x))


class InvertedBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.expand, self.depthwise = unit(before, 24, 1, act=False), unit(24, 24, 3, stride, 24, act=False)
        self.project = unit(24, after, 1, act=False)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + y if self.residual else y


class DenseBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = unit(channels, 8), unit(channels + 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.first(x)], dim=1)
        return torch.cat([x, self.second(x)], dim=1)


class Gate(nn.Module):
    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        self.shrink, self.grow = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.activation, self.constant = activation, False

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.activation(self.shrink(F.adaptive_avg_pool2d(x, 1)))
        gate = torch.sigmoid(self.grow(squeezed))
        return x * (gate.detach() if self.constant else gate)


class GatedBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body, self.gate = unit(channels, channels, act=False), Gate(channels, F.relu)
        self.rectify: Activation = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.rectify(x + self.gate(self.body(x)))


class ShuffleBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(unit(channels // 2, channels // 2, 1), unit(channels // 2, channels // 2, groups=2))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], dim=1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class InceptionBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tall = nn.Sequential(unit(channels, 8, (1, 7)), unit(8, 8, (7, 1)))
        self.single = unit(channels, 8, 1)
        self.pooled = unit(channels, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        average = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([self.tall(x), self.single(x), self.pooled(average)], dim=1)


class SiluBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand, self.depthwise = unit(channels, 24, 1, act=False), unit(24, 24, 5, groups=24, act=False)
        self.gate, self.project = Gate(24, F.silu), unit(24, channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.gate(F.silu(self.depthwise(F.silu(self.expand(x))))))
        return x + y


class NormOverChannels(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class NextBlock(nn.Module):
    """A block of ConvNeXt. Its norm and its linear layers work on (N, height, width, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.LayerNorm(channels)
        self.grow, self.shrink = nn.Linear(channels, 24), nn.Linear(24, channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shrink(F.gelu(self.grow(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        scaled: Tensor = self.scale * y.permute(0, 3, 1, 2)
        return x + scaled


def next_head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), NormOverChannels(channels), nn.Flatten(), nn.Linear(channels, CLASSES)
    )


def local_response_network() -> nn.Sequential:
    norm = nn.LocalResponseNorm(5, alpha=0.01, k=2.0)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 5, stride=2, padding=1), nn.ReLU(), norm, nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, CLASSES)),
    )


SMALL_NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "residual": lambda: nn.Sequential(
        unit(3, 8, 5, 2), nn.MaxPool2d(3, 2, 1), ResidualBlock(8, 8, 1), ResidualBlock(8, 16, 2), head(16)
    ),
    "depthwise": lambda: nn.Sequential(unit(3, 8, 3, 2), InvertedBlock(8, 8, 1), InvertedBlock(8, 12, 2), head(12)),
    "dense": lambda: nn.Sequential(
        unit(3, 8, 3, 2), DenseBlock(8), unit(24, 12, 1), nn.AvgPool2d(2), DenseBlock(12), head(28)
    ),
    "gate": lambda: nn.Sequential(unit(3, 8, 3, 2), GatedBlock(8), unit(8, 12, 3, 2), GatedBlock(12), head(12)),
    "shuffle": lambda: nn.Sequential(unit(3, 8, 3, 2), ShuffleBlock(8), ShuffleBlock(8), head(8)),
    "inception": lambda: nn.Sequential(
        unit(3, 8, 3, 2), InceptionBlock(8), nn.MaxPool2d(2), InceptionBlock(24), head(24)
    ),
    "silu": lambda: nn.Sequential(unit(3, 8, 3, 2), SiluBlock(8), SiluBlock(8), head(8)),
    "local response": local_response_network,
    "next": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), NormOverChannels(8)),
        nn.Sequential(NextBlock(8), NextBlock(8)),
        nn.Sequential(NormOverChannels(8), nn.Conv2d(8, 12, 2, stride=2)),
        nn.Sequential(NextBlock(12), NextBlock(12)),
        next_head(12),
    ),
}


def make_small_network(name: str) -> nn.Sequential:
    """Returns the network in evaluation mode. It has the same weights each time, and batch norms that do something."""
    torch.manual_seed(sum(name.encode()))
    network = SMALL_NETWORKS[name]()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network.eval()


def for_captum(network: nn.Sequential) -> nn.Sequential:
    """Returns a copy for which captum's deconvolution is right: each ReLU is a module, and gates are constants."""
    network = deepcopy(network)
    for block in network.modules():
        if isinstance(block, ResidualBlock | GatedBlock):
            block.rectify = nn.ReLU()
        if isinstance(block, Gate):
            block.constant = True
    return network
