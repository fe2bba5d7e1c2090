"""Operations that only move values map boxes back to exactly the units that they read."""

from collections.abc import Callable

import pytest
import torch
from fakes.graph_builder import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from zfserve_model.layers.receptive_field import Region, field, pitches


def layout_and_back(net: GraphBuilder, source: str) -> str:
    """Moves the channels last, and back."""
    last = net.add("Transpose", [source], net.values[source].permute(0, 2, 3, 1), perm=[0, 2, 3, 1])
    return net.add("Transpose", [last], net.values[last].permute(0, 3, 1, 2), perm=[0, 3, 1, 2])


def channel_shuffle(net: GraphBuilder, source: str) -> str:
    value = net.values[source]
    _, channels, height, width = value.shape
    grouped = value.reshape(1, 2, channels // 2, height, width)
    split = net.add("Reshape", [source], grouped)
    swapped = net.add("Transpose", [split], grouped.transpose(1, 2), perm=[0, 2, 1, 3, 4])
    return net.add("Reshape", [swapped], grouped.transpose(1, 2).reshape(value.shape))


def flipped_channels(net: GraphBuilder, source: str) -> str:
    bounds = [net.constant(torch.tensor([number])) for number in (-1, -(2**62), 1, -1)]
    return net.add("Slice", [source, *bounds], net.values[source].flip(1))


def reordered_channels(net: GraphBuilder, source: str) -> str:
    order = torch.tensor([2, 0, 1, 3])
    return net.add("Gather", [source, net.constant(order)], net.values[source][:, order], axis=1)


def every_second_row(net: GraphBuilder, source: str) -> str:
    bounds = [net.constant(torch.tensor([number])) for number in (1, 9999, 2, 2)]
    return net.add("Slice", [source, *bounds], net.values[source][:, :, 1::2])


def lower_part(net: GraphBuilder, source: str) -> str:
    value = net.values[source]
    upper = value.shape[2] // 3
    parts = [value[:, :, :upper], value[:, :, upper:]]
    return net.add_many("Split", [source], parts, axis=2)[1]


def rows_swapped(net: GraphBuilder, source: str) -> str:
    """Puts the lower rows above the upper rows."""
    value = net.values[source]
    upper, lower = net.add_many("Split", [source], [value[:, :, :5], value[:, :, 5:]], axis=2)
    return net.add("Concat", [lower, upper], torch.cat([net.values[lower], net.values[upper]], 2), axis=2)


def padded(net: GraphBuilder, source: str) -> str:
    pads = net.constant(torch.tensor([0, 0, 2, 1, 0, 0, 0, 3]))
    return net.add("Pad", [source, pads], functional.pad(net.values[source], (1, 3, 2, 0)))


def reflected(net: GraphBuilder, source: str) -> str:
    pads = net.constant(torch.tensor([0, 0, 2, 1, 0, 0, 0, 3]))
    value = functional.pad(net.values[source], (1, 3, 2, 0), mode="reflect")
    return net.add("Pad", [source, pads], value, mode="reflect")


def edged(net: GraphBuilder, source: str) -> str:
    pads = net.constant(torch.tensor([0, 0, 2, 1, 0, 0, 0, 3]))
    return net.add("Pad", [source, pads], functional.pad(net.values[source], (1, 3, 2, 0), "replicate"), mode="edge")


def doubled(net: GraphBuilder, source: str) -> str:
    value = functional.interpolate(net.values[source], scale_factor=2, mode="nearest")
    attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return net.add("Resize", [source], value, mode="nearest", **attributes)


def interpolated(net: GraphBuilder, source: str) -> str:
    value = functional.interpolate(net.values[source], (17, 9), mode="bilinear", align_corners=False)
    return net.add("Resize", [source], value, mode="linear", coordinate_transformation_mode="half_pixel")


def corners_aligned(net: GraphBuilder, source: str) -> str:
    value = functional.interpolate(net.values[source], (23, 19), mode="bilinear", align_corners=True)
    return net.add("Resize", [source], value, mode="linear", coordinate_transformation_mode="align_corners")


def transposed_convolution(net: GraphBuilder, source: str) -> str:
    weight = torch.ones(4, 2, 3, 2, dtype=torch.float64)
    value = functional.conv_transpose2d(net.values[source], weight, None, (2, 3), (1, 0), groups=2)
    inputs = [source, net.constant(weight)]
    return net.add("ConvTranspose", inputs, value, strides=[2, 3], pads=[1, 0, 1, 0], group=2)


def mean_over_channels(net: GraphBuilder, source: str) -> str:
    return net.add("ReduceMean", [source], net.values[source].mean(1, keepdim=True), axes=[1], keepdims=1)


def linear_over_channels(net: GraphBuilder, source: str) -> str:
    """Multiplies the channels of each place with a matrix, as ConvNeXt does."""
    last = net.values[source].permute(0, 2, 3, 1)
    moved = net.add("Transpose", [source], last, perm=[0, 2, 3, 1])
    weight = torch.ones(4, 6, dtype=torch.float64)
    product = net.add("MatMul", [moved, net.constant(weight)], last @ weight)
    return net.add("Transpose", [product], (last @ weight).permute(0, 3, 1, 2), perm=[0, 3, 1, 2])


MOVES = [
    layout_and_back,
    channel_shuffle,
    flipped_channels,
    reordered_channels,
    every_second_row,
    lower_part,
    rows_swapped,
    padded,
    reflected,
    edged,
    doubled,
    interpolated,
    corners_aligned,
    transposed_convolution,
    mean_over_channels,
    linear_over_channels,
]


@pytest.mark.parametrize("move", MOVES)
def test_a_unit_reads_the_units_that_change_it(move: Callable[[GraphBuilder, str], str]) -> None:
    net = GraphBuilder(21, 24)
    layer = move(net, net.conv("images", 4, (3, 3), (2, 2), group=1))
    graph = net.graph()
    _, channels, height, width = net.values[layer].shape
    for row in range(height):
        for column in {0, 1, width // 2, width - 1}:
            for maps in (range(channels), range(channels - 1, channels)):
                unit = range(row, row + 1), range(column, column + 1)
                exact = Region(*net.support(layer, *unit, maps=maps))
                assert field(graph, layer, *unit, maps=maps)["images"] == exact, (row, column, maps)


def test_a_map_of_one_group_sees_only_the_channels_of_its_group() -> None:
    """A branch of its own group keeps its smaller field through a shuffle of channels."""
    net = GraphBuilder(20, 20)
    narrow, wide = net.conv("images", 2, (1, 1)), net.conv("images", 2, (5, 5), pads=(2, 2, 2, 2))
    layer = channel_shuffle(net, net.join("Concat", [narrow, wide]))
    graph = net.graph()
    unit = range(9, 10), range(9, 10)
    sizes = [len(field(graph, layer, *unit, maps=range(each, each + 1))["images"].rows) for each in range(4)]
    assert sizes == [1, 5, 1, 5]


def test_the_pitch_behind_a_resize_covers_every_unit() -> None:
    """Two neighbours read the same place below, so the fields of units differ. The pitch contains each of them."""
    net = GraphBuilder(20, 20)
    layer = net.conv(doubled(net, net.conv("images", 4, (2, 2), (2, 2))), 2, (3, 3), pads=(1, 1, 1, 1))
    graph = net.graph()
    (rows, _), unit = pitches(graph, [layer])[0], range(7, 8)
    assert rows.stride == 1
    for row in range(net.values[layer].shape[2]):
        first = rows.offset + row * rows.stride
        seen = field(graph, layer, range(row, row + 1), unit)["images"].rows
        assert first <= seen.start < seen.stop <= first + rows.size


def pairs(smallest: int, largest: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(smallest, largest), st.integers(smallest, largest))


@given(
    layers=st.lists(st.tuples(pairs(1, 4), pairs(1, 3), pairs(0, 2)), min_size=1, max_size=4),
    skip=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_fields_of_any_chain_of_kernels_strides_and_pads_are_exact(
    layers: list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]], skip: bool, data: st.DataObject
) -> None:
    net = GraphBuilder(41, 37)
    layer = "images"
    for kernel, strides, pads in layers:
        below = layer
        if min(net.values[below].shape[2:]) < max(kernel):
            break
        # A stride within the kernel leaves no gaps, and padding below the kernel leaves no unit without pixels.
        steps = min(strides[0], kernel[0]), min(strides[1], kernel[1])
        before = min(pads[0], kernel[0] - 1), min(pads[1], kernel[1] - 1)
        layer = net.conv(below, 2, kernel, steps, (*before, 0, 0))
        if skip and net.values[below].shape == net.values[layer].shape:
            layer = net.join("Add", [below, layer])
    _, _, height, width = net.values[layer].shape
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    unit = range(row, row + 1), range(column, column + 1)
    assert field(net.graph(), layer, *unit)["images"] == Region(*net.support(layer, *unit))
