"""Projections through tiny graphs, with every number computed by hand.

`test_deconvnet.py` has a whole path with a max-pool in ceil mode, whose windows overlap and share a maximum.
"""

from collections.abc import Sequence

import torch
from fakes.network_graphs import RunningGraphBuilder
from torch import Tensor
from zfserve_model.explanation.deconvnet import Position, Projection, Window, project, trace

Rows = Sequence[Sequence[float]]


def filters(*values: float, shape: tuple[int, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(shape)


def projected(
    builder: RunningGraphBuilder, layer: str, image: Sequence[Rows], index: int, unit: Position
) -> Projection:
    (found,) = project(trace(builder.build(), torch.tensor(image), [layer]), layer, [index], unit)
    return found


def test_a_residual_block_sends_the_signal_down_both_branches() -> None:
    """The block is x + relu(2 x - 5)."""
    builder = RunningGraphBuilder(1, 2, 2)
    inside = builder.add("Conv", "images", filters(2, shape=(1, 1, 1, 1)), torch.tensor([-5.0]))
    layer = builder.add("Add", "images", builder.add("Relu", inside))
    image = [[[1.0, 2.0], [3.0, 4.0]]]
    # 4 + relu(3) = 7. The shortcut carries 7 down, the branch 7 * 2.
    last = projected(builder, layer, image, 0, Position(1, 1))
    assert (last.activation, last.pixels.tolist()) == (7, [[[21]]])
    # 1 + relu(-3) = 1. The ReLU was off. It rectifies the signal and not the activation, so 1 * 2 comes through.
    first = projected(builder, layer, image, 0, Position(0, 0))
    assert (first.activation, first.pixels.tolist()) == (1, [[[3]]])
    assert first.window == Window(left=0, top=0, right=1, bottom=1)


def test_the_branches_of_a_concatenation_get_their_own_maps() -> None:
    """Two branches, relu(2 x) and relu(3 x), are joined and weighted by 1 and -10."""
    builder = RunningGraphBuilder(1, 1, 1)
    branches = [
        builder.add("Relu", builder.add("Conv", "images", filters(weight, shape=(1, 1, 1, 1)))) for weight in (2, 3)
    ]
    joined = builder.add("Concat", *branches, axis=1)
    layer = builder.add("Conv", joined, filters(1, -10, shape=(1, 2, 1, 1)))
    found = projected(builder, layer, [[[1.0]]], 0, Position(0, 0))
    # 2 * 1 - 10 * 3 = -28. The first branch gets -28, which its ReLU stops. The second gets 280, and 280 * 3 arrives.
    assert (found.activation, found.pixels.tolist()) == (-28, [[[840]]])


def test_a_depthwise_convolution_stays_in_its_channel() -> None:
    builder = RunningGraphBuilder(2, 1, 3)
    layer = builder.add("Conv", "images", filters(1, 2, 3, -1, 0, 1, shape=(2, 1, 1, 3)), group=2)
    image = [[[1.0, 1.0, 1.0]], [[1.0, 2.0, 3.0]]]
    first = projected(builder, layer, image, 0, Position(0, 0))  # 1 + 2 + 3 = 6
    assert (first.activation, first.pixels.tolist()) == (6, [[[6, 12, 18]], [[0, 0, 0]]])
    second = projected(builder, layer, image, 1, Position(0, 0))  # -1 + 3 = 2
    assert (second.activation, second.pixels.tolist()) == (2, [[[0, 0, 0]], [[-2, 0, 2]]])


def test_a_unit_that_sees_padding_alone_has_a_black_pixel() -> None:
    builder = RunningGraphBuilder(3, 2, 2)
    layer = builder.add("Conv", "images", torch.ones(1, 3, 1, 1), torch.tensor([4.0]), pads=[1, 1, 1, 1])
    found = projected(builder, layer, [[[1.0, 1.0], [1.0, 1.0]]] * 3, 0, Position(0, 0))
    assert (found.activation, found.pixels.tolist()) == (4, [[[0]], [[0]], [[0]]])


def test_a_shortcut_with_stride_2_reads_every_second_place() -> None:
    """A 3x3 convolution with stride 2, whose filter is a cross without its middle, and a shortcut of ten times x."""
    builder = RunningGraphBuilder(1, 4, 4)
    cross = filters(0, 1, 0, 1, 0, 1, 0, 1, 0, shape=(1, 1, 3, 3))
    body = builder.add("Conv", "images", cross, pads=[1, 1, 1, 1], strides=[2, 2])
    shortcut = builder.add("Conv", "images", filters(10, shape=(1, 1, 1, 1)), strides=[2, 2])
    layer = builder.add("Add", body, shortcut)
    image = [[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 4.0, 1.0, 5.0], [0.0, 0.0, 3.0, 0.0]]]
    found = projected(builder, layer, image, 0, Position(1, 1))
    # 2 + 4 + 5 + 3 from the cross around (2, 2), and 10 * 1 from (2, 2) itself.
    assert found.activation == 24
    assert found.pixels.tolist() == [[[0, 24, 0], [24, 240, 24], [0, 24, 0]]]
    assert found.window == Window(left=1, top=1, right=4, bottom=4)
    # At the edge, the part of the cross that lies in the padding reaches no pixel: 0 + 2 at the unit above.
    edge = projected(builder, layer, image, 0, Position(0, 1))
    assert (edge.activation, edge.pixels.tolist()) == (2, [[[2, 20, 2], [0, 2, 0]]])


def test_a_relu6_above_6_passes_the_signal() -> None:
    """The gradient of ReLU6 is zero above 6. The deconvnet rectifies the signal, whatever the forward pass did."""
    builder = RunningGraphBuilder(1, 1, 1)
    inside = builder.add("Conv", "images", filters(2, shape=(1, 1, 1, 1)))
    layer = builder.add("Clip", inside, torch.tensor(0.0), torch.tensor(6.0))
    found = projected(builder, layer, [[[5.0]]], 0, Position(0, 0))  # 2 * 5 = 10, cut to 6; then 6 * 2
    assert (found.activation, found.pixels.tolist()) == (6, [[[12]]])


def test_a_gate_is_constant_on_the_way_down() -> None:
    """The gate is sigmoid(mean(x) - 2): 0.5 for this image, whose mean is 2."""
    builder = RunningGraphBuilder(1, 1, 2)
    mean = builder.add("GlobalAveragePool", "images")
    shifted = builder.add("Conv", mean, filters(1, shape=(1, 1, 1, 1)), torch.tensor([-2.0]))
    layer = builder.add("Mul", "images", builder.add("Sigmoid", shifted))
    found = projected(builder, layer, [[[1.0, 3.0]]], 0, Position(0, 1))  # 3 * 0.5 = 1.5, then 1.5 * 0.5
    assert (found.activation, found.pixels.tolist()) == (1.5, [[[0.75]]])
    assert found.window == Window(left=1, top=0, right=2, bottom=1)


def test_the_scale_of_a_norm_multiplies_the_signal() -> None:
    """An instance norm of the values 1 and 3 gives -1 and 1. The scale is 5, the shift 2."""
    builder = RunningGraphBuilder(1, 1, 2)
    layer = builder.add("InstanceNormalization", "images", torch.tensor([5.0]), torch.tensor([2.0]), epsilon=0.0)
    found = projected(builder, layer, [[[1.0, 3.0]]], 0, Position(0, 1))  # 1 * 5 + 2 = 7, then 7 * 5
    assert (found.activation, found.pixels.tolist()) == (7, [[[35]]])
