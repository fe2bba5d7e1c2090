"""Each operation on the way down equals automatic differentiation, for single units and whole maps, in float64.

Every graph has the operation between a convolution with a ReLU below and a convolution above it. So signals reach it in
small boxes, at the edge of the map, and from all channels.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fakes.autograd_projection import reference_projection
from fakes.network_graphs import RunningGraphBuilder
from torch import Tensor
from zfserve_model.explanation.deconvnet import Position, StrongestUnit, WholeMap, project, trace

CHANNELS, HEIGHT, WIDTH = 8, 10, 13
SMALL_BATCHES, LARGE_BATCHES = 1 << 12, 1 << 24
"""The limits of live signals, in bytes: units go down one by one, and all together."""

GENERATOR = torch.Generator().manual_seed(1)

Build = Callable[[RunningGraphBuilder, str], str]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def integers(*values: int) -> Tensor:
    return torch.tensor(values)


def limit(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def convolution(*shape: int, **attributes: Any) -> Build:
    return lambda builder, x: builder.add("Conv", x, random(*shape), random(shape[0]), **attributes)


def single(operation: str, *inputs: str | Tensor, **attributes: Any) -> Build:
    """Returns the operation behind a 1x1 convolution, so that it sees negative values too."""
    return lambda builder, x: builder.add(operation, mixed(builder, x), *inputs, **attributes)


def mixed(builder: RunningGraphBuilder, x: str) -> str:
    return builder.add("Conv", x, random(CHANNELS, CHANNELS, 1, 1), random(CHANNELS))


def spatial(builder: RunningGraphBuilder, x: str, channels: int = CHANNELS, stride: int = 1) -> str:
    inputs = builder.values[x].shape[1]
    return builder.add("Conv", x, random(channels, inputs, 3, 3), pads=[1] * 4, strides=[stride] * 2)


def residual(builder: RunningGraphBuilder, x: str) -> str:
    return builder.add("Add", spatial(builder, x), x)


def shortcut_with_stride(builder: RunningGraphBuilder, x: str) -> str:
    shortcut = builder.add("Conv", x, random(CHANNELS, CHANNELS, 1, 1), strides=[2, 2])
    return builder.add("Add", spatial(builder, x, stride=2), shortcut)


def difference(builder: RunningGraphBuilder, x: str) -> str:
    return builder.add("Sub", x, spatial(builder, x))


def sum_with_broadcast(builder: RunningGraphBuilder, x: str) -> str:
    return builder.add("Sum", spatial(builder, x), builder.add("GlobalAveragePool", x))


def dense_block(builder: RunningGraphBuilder, x: str) -> str:
    for _ in range(2):
        x = builder.add("Concat", x, builder.add("Relu", spatial(builder, x, 4)), axis=1)
    return x


def inception(builder: RunningGraphBuilder, x: str) -> str:
    wide = builder.add("Conv", x, random(5, CHANNELS, 1, 5), pads=[0, 2, 0, 2])
    pooled = builder.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
    return builder.add("Concat", x, wide, pooled, axis=1)


def split_and_join(builder: RunningGraphBuilder, x: str) -> str:
    first = builder.add("Split", x, integers(3, 5), outputs=["first", "second"], axis=1)
    return builder.add("Concat", "second", spatial(builder, first, 3), axis=1)


def slices(builder: RunningGraphBuilder, x: str) -> str:
    halves = [builder.add("Slice", x, integers(a), integers(b), integers(1)) for a, b in ((4, 8), (-8, 4))]
    return builder.add("Concat", *halves, axis=1)


def focus(builder: RunningGraphBuilder, x: str) -> str:
    corners = [(row, column) for row in (0, 1) for column in (0, 1)]
    quarters = [
        builder.add("Slice", x, integers(*corner), integers(10, 12), integers(2, 3), integers(2, 2))
        for corner in corners
    ]
    return builder.add("Concat", *quarters, axis=1)


def channel_shuffle(builder: RunningGraphBuilder, x: str) -> str:
    x = builder.add("Conv", x, random(CHANNELS, 2, 1, 1), group=4)
    x = builder.add("Reshape", x, integers(0, 2, 4, HEIGHT, WIDTH))
    x = builder.add("Reshape", builder.add("Transpose", x, perm=[0, 2, 1, 3, 4]), integers(0, CHANNELS, HEIGHT, WIDTH))
    return builder.add("Conv", x, random(CHANNELS, 1, 3, 3), group=CHANNELS, pads=[1] * 4)


def padded(**attributes: Any) -> Build:
    def build(builder: RunningGraphBuilder, x: str) -> str:
        x = builder.add("Pad", x, integers(0, 0, 0, 1, 0, 0, 1, 2), **attributes)
        return builder.add("Conv", x, random(CHANNELS, CHANNELS, 3, 3), strides=[2, 2])

    return build


def squeeze_and_excitation(activation: str) -> Build:
    def build(builder: RunningGraphBuilder, x: str) -> str:
        gate = builder.add(activation, mixed(builder, builder.add("GlobalAveragePool", x)))
        return spatial(builder, builder.add("Mul", x, gate))

    return build


def spatial_gate(builder: RunningGraphBuilder, x: str) -> str:
    return builder.add("Mul", builder.add("Sigmoid", spatial(builder, x, 1)), x)


def clipped_gate(builder: RunningGraphBuilder, x: str) -> str:
    gate = builder.add("Mul", mixed(builder, builder.add("GlobalAveragePool", x)), limit(0.1))
    gate = builder.add("Add", gate, limit(0.5))  # between the limits in some maps at least
    return builder.add("Mul", x, builder.add("Clip", gate, limit(0), limit(1), outputs=["gate"]))


def block_with_channels_last(builder: RunningGraphBuilder, x: str) -> str:
    y = builder.add("Conv", x, random(CHANNELS, 1, 5, 5), pads=[2] * 4, group=CHANNELS)
    y = builder.add("Transpose", y, perm=[0, 2, 3, 1])
    y = builder.add("LayerNormalization", y, random(CHANNELS), random(CHANNELS))
    y = builder.add("Gelu", builder.add("Add", builder.add("MatMul", y, random(CHANNELS, 32)), random(32)))
    y = builder.add("Mul", builder.add("MatMul", y, random(32, CHANNELS)), random(CHANNELS))
    return builder.add("Add", builder.add("Transpose", y, perm=[0, 3, 1, 2]), x)


def flattened(*weight: int, **attributes: Any) -> Build:
    def build(builder: RunningGraphBuilder, x: str) -> str:
        vector = builder.add("Gemm", builder.add("Flatten", x, axis=1), random(*weight), random(7), **attributes)
        return builder.add("Unsqueeze", vector, integers(2, 3))

    return build


def reduced(operation: str, axes: tuple[int, ...], keep: int) -> Build:
    def build(builder: RunningGraphBuilder, x: str) -> str:
        x = builder.add(operation, mixed(builder, x), integers(*axes), keepdims=keep)
        return x if keep else builder.add("Unsqueeze", x, integers(*axes))

    return build


ACTIVATIONS = (
    *("Relu", "Silu", "Swish", "HardSwish", "Gelu", "LeakyRelu", "Elu", "Selu", "Celu", "Mish", "Softplus"),
    "ThresholdedRelu",
)

POOLS: dict[str, dict[str, Any]] = {
    "3x3 s2": {"kernel_shape": [3, 3], "strides": [2, 2]},
    "3x3 s2, ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    "3x3 s2 p1": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4},
    "3x3 s2 p1, ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1},
    "2x3, asymmetric": {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 0, 0, 2], "ceil_mode": 1},
    "5x5 s1 p2": {"kernel_shape": [5, 5], "pads": [2] * 4},
}

OPERATIONS: dict[str, Build] = {
    "depthwise": convolution(CHANNELS, 1, 3, 3, pads=[1] * 4, group=CHANNELS),
    "depthwise, stride 2": convolution(2 * CHANNELS, 1, 3, 3, pads=[1] * 4, group=CHANNELS, strides=[2, 2]),
    "grouped, dilated, asymmetric": convolution(
        12, 4, 3, 3, pads=[2, 1, 0, 3], group=2, dilations=[2, 1], strides=[1, 2]
    ),
    "1x7": convolution(12, CHANNELS, 1, 7, pads=[0, 3, 0, 3]),
    "1x1": convolution(12, CHANNELS, 1, 1),
    "1x1, stride 2": convolution(12, CHANNELS, 1, 1, strides=[2, 2]),
    "3 channels": lambda builder, x: spatial(builder, spatial(builder, x, 3)),
    "SAME_UPPER": convolution(12, CHANNELS, 3, 3, strides=[2, 2], auto_pad="SAME_UPPER"),
    "SAME_LOWER": convolution(12, CHANNELS, 4, 4, strides=[2, 2], auto_pad="SAME_LOWER"),
    "transposed convolution": lambda builder, x: builder.add(
        "ConvTranspose", x, random(CHANNELS, 5, 3, 3), strides=[2, 2], pads=[1, 1, 0, 0]
    ),
    "batch norm": single("BatchNormalization", *(random(CHANNELS) for _ in range(3)), random(CHANNELS).abs()),
    **{name: single(name) for name in ACTIVATIONS},
    "PRelu": single("PRelu", random(CHANNELS, 1, 1)),
    "ReLU6": single("Clip", limit(0), limit(6)),
    **{f"max-pool {name}": single("MaxPool", **attributes) for name, attributes in POOLS.items()},
    "max-pool, dilated": single("MaxPool", kernel_shape=[3, 3], strides=[2, 2], dilations=[2, 2]),
    **{
        f"average pool {name}, padding {'' if counts else 'not '}counted": single(
            "AveragePool", count_include_pad=counts, **attributes
        )
        for name, attributes in POOLS.items()
        for counts in (0, 1)
    },
    "global average pool": single("GlobalAveragePool"),
    "global max-pool": single("GlobalMaxPool"),
    "mean over places": reduced("ReduceMean", (2, 3), 0),
    "mean over rows": reduced("ReduceMean", (3,), 1),
    "mean over channels": reduced("ReduceMean", (1,), 1),
    "sum over places": reduced("ReduceSum", (-2, -1), 1),
    "maximum over places": reduced("ReduceMax", (2, 3), 0),
    "linear": flattened(CHANNELS * HEIGHT * WIDTH, 7, alpha=0.5),
    "linear, transposed": flattened(7, CHANNELS * HEIGHT * WIDTH, transB=1),
    "residual": residual,
    "shortcut with stride 2": shortcut_with_stride,
    "difference": difference,
    "sum with broadcasting": sum_with_broadcast,
    "mean of terms": lambda builder, x: builder.add("Mean", spatial(builder, x), x),
    "negative": single("Neg"),
    "dense block": dense_block,
    "inception": inception,
    "split": split_and_join,
    "slices of channels": slices,
    "slice of places": single("Slice", integers(1, 2), integers(100, -1), integers(2, 3)),
    "slices with steps": focus,
    "channel shuffle": channel_shuffle,
    "pad": padded(),
    "pad by reflection": padded(mode="reflect"),
    "resize, nearest": single(
        "Resize", "", torch.tensor([1.0, 1, 2, 2]), coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "resize, linear": single("Resize", "", "", integers(1, CHANNELS, 20, 21), mode="linear"),
    "scale of channels": single("Mul", random(CHANNELS, 1, 1)),
    "scale of places": single("Mul", random(1, 1, HEIGHT, WIDTH)),
    "divisor": single("Div", random(1, CHANNELS, 1, 1)),
    "gather": single("Gather", integers(3, 1, 0, 7, 2), axis=1),
    "depth to space": single("DepthToSpace", blocksize=2, mode="DCR"),
    "gate, sigmoid": squeeze_and_excitation("Sigmoid"),
    "gate, hard sigmoid": squeeze_and_excitation("HardSigmoid"),
    "gate of places": spatial_gate,
    "gate, clipped": clipped_gate,
    "LRN": lambda builder, x: spatial(builder, builder.add("LRN", x, size=5, bias=2.0, alpha=1.0)),
    "group norm": lambda builder, x: spatial(
        builder, builder.add("GroupNormalization", x, random(CHANNELS), random(CHANNELS), num_groups=4)
    ),
    "instance norm": lambda builder, x: spatial(
        builder, builder.add("InstanceNormalization", x, random(CHANNELS), random(CHANNELS))
    ),
    "channels last": block_with_channels_last,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_automatic_differentiation(name: str) -> None:
    builder = RunningGraphBuilder(3, HEIGHT, WIDTH, torch.float64)
    below = builder.add("Conv", "images", random(CHANNELS, 3, 3, 3), random(CHANNELS), pads=[1] * 4)
    x = OPERATIONS[name](builder, builder.add("Relu", below))
    layer = builder.add("Conv", x, random(3, builder.values[x].shape[1], 1, 1), outputs=["layer"])
    graph, image = builder.build(), random(3, HEIGHT, WIDTH)
    forward = trace(graph, image, [layer])
    _, height, width = forward.activations[layer].shape
    largest = 0.0
    for rule in (StrongestUnit(), Position(0, width - 1), Position(height - 1, 0), WholeMap()):
        together = project(forward, layer, (0, 2), rule, LARGE_BATCHES)
        for found, alone in zip(together, project(forward, layer, (0, 2), rule, SMALL_BATCHES), strict=True):
            place = None if found.unit is None else (found.unit.row, found.unit.column)
            expected = reference_projection(graph, image, layer, found.map, place, frozenset(["gate"]))
            whole, window = torch.zeros_like(expected), found.window
            whole[:, window.top : window.bottom, window.left : window.right] = found.pixels
            tolerance = 1e-12 * max(1, float(expected.abs().max()))
            torch.testing.assert_close(whole, expected, rtol=0, atol=tolerance)
            torch.testing.assert_close(alone.pixels, found.pixels, rtol=0, atol=tolerance)
            assert alone.window == window
            largest = max(largest, float(expected.abs().max()))
    assert largest > 0
