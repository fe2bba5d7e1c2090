"""Receptive fields are exact: they are the pixels that change a unit, in networks of any shape."""

from collections.abc import Callable

import pytest
import torch
from fakes.graph_builder import GraphBuilder
from zfserve_model.explanation.deconvnet import Position, project, trace
from zfserve_model.layers.receptive_field import Pitch, Region, field, pitches, see_whole_image


def residual(net: GraphBuilder) -> str:
    """Adds a block with stride 2, and a 1x1 convolution on the way around it."""
    stem = net.relu(net.conv("images", 4, pads=(1, 1, 1, 1)))
    body = net.conv(net.relu(net.conv(stem, 6, strides=(2, 2), pads=(1, 1, 1, 1))), 6, pads=(1, 1, 1, 1))
    return net.relu(net.join("Add", [body, net.conv(stem, 6, (1, 1), (2, 2))]))


def dense(net: GraphBuilder) -> str:
    x = net.conv("images", 4, (5, 5), (2, 2), (2, 2, 2, 2))
    for _ in range(3):
        x = net.join("Concat", [x, net.conv(net.relu(x), 2, pads=(1, 1, 1, 1))])
    return net.pool(net.conv(x, 3, (1, 1)), 2, 2)


def inception(net: GraphBuilder) -> str:
    x = net.pool(net.conv("images", 4, (3, 3), (2, 2)))
    wide = net.conv(net.conv(x, 2, (1, 7), pads=(0, 3, 0, 3)), 3, (7, 1), pads=(3, 0, 3, 0))
    return net.join("Concat", [net.conv(x, 2, (1, 1)), wide, net.pool(x, 3, 1, 1)])


def lopsided(net: GraphBuilder) -> str:
    """Adds pads that differ between the sides, kernels and strides that differ between rows and columns."""
    return net.conv(net.conv("images", 2, (2, 3), (1, 2), (0, 1, 1, 0)), 3, (4, 1), (2, 1), (3, 0, 0, 0))


def dilated(net: GraphBuilder) -> str:
    return net.conv("images", 4, (3, 3), pads=(4, 3, 4, 3), dilations=(4, 3))


def twice_dilated(net: GraphBuilder) -> str:
    return net.conv(
        net.conv("images", 4, pads=(2, 2, 2, 2), dilations=(2, 2)), 4, pads=(4, 3, 4, 3), dilations=(4, 3), group=2
    )


def gated(net: GraphBuilder) -> str:
    return net.conv(net.gate(net.conv("images", 4, strides=(2, 2))), 4)


NETWORKS = (residual, dense, inception, lopsided, dilated)


@pytest.mark.parametrize("build", NETWORKS)
def test_fields_are_the_pixels_that_change_a_unit(build: Callable[[GraphBuilder], str]) -> None:
    net = GraphBuilder(33, 38)
    layer = build(net)
    _, _, height, width = net.values[layer].shape
    graph = net.graph()
    for row in {0, 1, height // 2, height - 1}:
        for column in {0, width // 2, width - 2, width - 1}:
            unit = range(row, row + 1), range(column, column + 1)
            assert field(graph, layer, *unit)["images"] == Region(*net.support(layer, *unit)), (row, column)


def test_intervals_may_be_larger_where_two_dilations_leave_gaps() -> None:
    """A box covers the gaps between the places that a dilated kernel reads, so it may be larger at the edges."""
    net = GraphBuilder(33, 38)
    layer = twice_dilated(net)
    graph = net.graph()
    for column in range(38):
        unit = range(20, 21), range(column, column + 1)
        exact, found = net.support(layer, *unit)[1], field(graph, layer, *unit)["images"].columns
        assert set(exact) <= set(found)
        assert len(found) - len(exact) <= 1


@pytest.mark.parametrize("build", [*NETWORKS, twice_dilated])
def test_the_pitch_gives_the_field_of_every_unit(build: Callable[[GraphBuilder], str]) -> None:
    """Clipped to the image, `offset + i * stride` and the size are the exact field of unit i."""
    net = GraphBuilder(33, 38)
    layer = build(net)
    graph = net.graph()
    for axis, pitch in enumerate(pitches(graph, [layer])[0]):
        image = net.image.shape[2 + axis]
        for index in range(net.values[layer].shape[2 + axis]):
            unit = [range(net.values[layer].shape[2]), range(net.values[layer].shape[3])]
            unit[axis] = range(index, index + 1)
            first = pitch.offset + index * pitch.stride
            exact = net.support(layer, unit[0], unit[1])[axis]
            claimed = range(max(first, 0), min(first + pitch.size, image))
            # Padding between two layers hides a few pixels at the edges, so the exact field may be smaller there.
            assert set(exact) <= set(claimed)
            if first >= 0 and first + pitch.size <= image:
                assert exact == claimed


@pytest.mark.parametrize(("factor", "size"), [(2, 28), (4, 16), (8, 32)])
def test_an_upsampled_branch_leaves_the_stride_as_it_is(factor: int, size: int) -> None:
    """HRNet adds such branches. The units still step by the stride of the fine branch, 2."""
    net = GraphBuilder(size, size)
    fine = net.conv("images", 4, strides=(2, 2), pads=(1, 1, 1, 1))
    coarse = net.conv(fine, 4, strides=(factor, factor), pads=(1, 1, 1, 1))
    layer = net.join("Add", [fine, enlarged(net, coarse, factor)])
    rows, columns = pitches(net.graph(), [layer])[0]
    assert (rows.stride, columns.stride) == (2, 2)


def enlarged(net: GraphBuilder, source: str, factor: int) -> str:
    """Adds a Resize that repeats each value."""
    value = net.values[source].repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    sizes = net.constant(torch.tensor([1.0, 1.0, factor, factor]))
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return net.add("Resize", [source, "", sizes], value, **modes)


def test_the_pitch_of_a_residual_block_by_hand() -> None:
    """A residual block sees what its longest branch sees: 1 + 2 + 2 + 2 * 2 pixels, and steps by its stride."""
    net = GraphBuilder(32, 32)
    layer = residual(net)
    assert pitches(net.graph(), [layer])[0] == (Pitch(9, 2, -4), Pitch(9, 2, -4))


def test_rows_and_columns_have_pitches_of_their_own() -> None:
    net = GraphBuilder(32, 32)
    layer = lopsided(net)
    # Rows: 2x, stride 1, no pad; then 4x, stride 2, pad 3. Columns: 3x, stride 2, pad 1; then 1x.
    assert pitches(net.graph(), [layer])[0] == (Pitch(5, 2, -3), Pitch(3, 2, -1))


def test_a_map_of_a_narrow_branch_sees_less() -> None:
    net = GraphBuilder(40, 40)
    layer = inception(net)
    graph = net.graph()
    unit = range(4, 5), range(4, 5)
    for maps in (range(0, 2), range(2, 5), range(5, 9)):
        assert field(graph, layer, *unit, maps=maps)["images"] == Region(*net.support(layer, *unit, maps=maps))


def test_a_gate_shows_the_whole_image_but_a_projection_takes_it_as_constant() -> None:
    net = GraphBuilder(30, 30)
    layer = gated(net)
    graph = net.graph()
    unit = range(5, 6), range(6, 7)
    assert field(graph, layer, *unit, paths="all")["images"] == Region(*net.support(layer, *unit))
    assert field(graph, layer, *unit, paths="all")["images"] == Region(
        range(29), range(29)
    )  # the stride leaves one out
    assert field(graph, layer, *unit)["images"] == Region(range(10, 17), range(12, 19))
    assert see_whole_image(graph, [layer, "t0_0"]) == [True, False]
    assert pitches(graph, [layer])[0] == (Pitch(7, 2, 0), Pitch(7, 2, 0))


def test_a_unit_that_reads_only_padding_sees_nothing() -> None:
    net = GraphBuilder(8, 8)
    layer = net.conv("images", 2, (1, 1), pads=(2, 2, 2, 2))
    graph = net.graph()
    assert field(graph, layer, range(0, 1), range(3, 4))["images"] == Region(range(0), range(0))
    assert field(graph, layer, range(2, 3), range(3, 4))["images"] == Region(range(0, 1), range(1, 2))


def test_regions_of_all_tensors_on_the_way_are_given() -> None:
    net = GraphBuilder(16, 16)
    first = net.conv("images", 2, pads=(1, 1, 1, 1))
    second = net.pool(first, 2, 2)
    assert field(net.graph(), second, range(3, 5), range(0, 1)) == {
        second: Region(range(3, 5), range(0, 1)),
        first: Region(range(6, 10), range(0, 2)),
        "images": Region(range(5, 11), range(0, 3)),
    }


@pytest.mark.parametrize("build", [residual, dense, inception, lopsided, twice_dilated, gated])
def test_a_projection_fills_the_direct_field_of_its_unit(build: Callable[[GraphBuilder], str]) -> None:
    """The worker's box and patch come from the projection, and the table from here. Both must name the same pixels."""
    net = GraphBuilder(33, 38)
    layer = build(net)
    graph = net.graph()
    traced = trace(graph, net.image[0].detach(), [layer])
    for row, column in ((0, 0), (3, 5), (net.values[layer].shape[2] - 1, net.values[layer].shape[3] - 2)):
        for projection in project(traced, layer, [0, 2], Position(row, column)):
            maps = range(projection.map, projection.map + 1)
            seen = field(graph, layer, range(row, row + 1), range(column, column + 1), maps=maps)["images"]
            window = projection.window
            assert (range(window.top, window.bottom), range(window.left, window.right)) == (seen.rows, seen.columns)
