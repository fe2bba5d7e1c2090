"""The backward steps are computed by hand on 4x4 maps, so that every number can be checked with a pencil."""

import torch
from torch import Tensor, nn
from zfserve_model.chain_steps import Signal, convolve_transposed, pool_with_switches, rectify, unpool

POOL = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
# Windows start at rows and columns 0 and 2. In ceil mode the map's edge cuts the windows at 2 to two rows or columns.
# The 9 in row 2, column 2 lies in all four windows and is the maximum of three. The 11 in row 3 wins the fourth.
ACTIVATIONS = torch.tensor(
    [
        [1.0, 2.0, 3.0, 4.0],
        [5.0, 6.0, 7.0, 8.0],
        [1.0, 3.0, 9.0, 2.0],
        [4.0, 0.0, 1.0, 11.0],
    ]
)


def whole(values: Tensor) -> Signal:
    """Returns one signal of one channel that covers its whole layer. `values` is (height, width)."""
    return Signal(values[None, None], tops=(0,), lefts=(0,))


def convolution(weight: list[list[float]], stride: int = 1, padding: int = 0) -> nn.Conv2d:
    conv = nn.Conv2d(1, 1, len(weight), stride, padding)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(weight))
        conv.bias = nn.Parameter(torch.tensor([100.0]))  # a bias must not change the backward step
    return conv


def test_pooling_remembers_each_place_within_its_window() -> None:
    pooled, switches = pool_with_switches(POOL, ACTIVATIONS[None])
    assert pooled[0].tolist() == [[9.0, 9.0], [9.0, 11.0]]
    # Row 2, column 2 is position 8 of the first window, 6 of the second and 2 of the third. Row 3, column 3 is
    # position 4 (row 1, column 1) of the fourth.
    assert switches[0].tolist() == [[8, 6], [2, 4]]
    assert switches.dtype == torch.uint8


def test_colliding_switches_add() -> None:
    _, switches = pool_with_switches(POOL, ACTIVATIONS[None])
    below = unpool(whole(torch.tensor([[1.0, 2.0], [4.0, 8.0]])), POOL, switches)
    # 1 + 2 + 4 meet at row 2, column 2. The window reaches one row and column past the map, where all is zero.
    assert below.values[0, 0].tolist() == [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 7.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 8.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ]


def test_unpooling_one_unit_fills_its_window_alone() -> None:
    _, switches = pool_with_switches(POOL, ACTIVATIONS[None])
    unit = Signal(torch.full((1, 1, 1, 1), 5.0), tops=(1,), lefts=(1,), maps=(0,))
    below = unpool(unit, POOL, switches)
    assert (below.tops, below.lefts) == ((2,), (2,))
    assert below.values[0, 0].tolist() == [[0.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]


def test_rectifying_keeps_what_is_positive() -> None:
    assert rectify(whole(torch.tensor([[-1.0, 2.0], [0.0, -3.0]]))).values[0, 0].tolist() == [[0.0, 2.0], [0.0, 0.0]]


def test_transposed_convolution_lays_the_filter_at_every_unit() -> None:
    conv = convolution([[1.0, 2.0], [3.0, 4.0]], stride=2)
    below = convolve_transposed(whole(torch.tensor([[1.0, 0.0], [0.0, 10.0]])), conv, 4, 4)
    assert below.values[0, 0].tolist() == [
        [1.0, 2.0, 0.0, 0.0],
        [3.0, 4.0, 0.0, 0.0],
        [0.0, 0.0, 10.0, 20.0],
        [0.0, 0.0, 30.0, 40.0],
    ]


def test_overlapping_filters_add_and_the_padding_is_dropped() -> None:
    # The filters are 3x3, all ones, with padding 1, on a 2x2 map. So all four units see each of the four pixels.
    conv = convolution([[1.0, 1.0, 1.0]] * 3, padding=1)
    below = convolve_transposed(whole(torch.tensor([[1.0, 2.0], [4.0, 8.0]])), conv, 2, 2)
    assert (below.tops, below.lefts) == ((0,), (0,))
    assert below.values[0, 0].tolist() == [[15.0, 15.0], [15.0, 15.0]]


def test_windows_of_one_batch_lose_only_their_own_padding() -> None:
    # Two units of a 4x4 map under a padded 3x3 filter. One is in the corner, the other inside.
    conv = convolution([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], padding=1)
    units = Signal(torch.tensor([1.0, 10.0])[:, None, None, None], tops=(0, 1), lefts=(0, 2), maps=(0, 0))
    below = convolve_transposed(units, conv, 4, 4)
    assert (below.tops, below.lefts) == ((-1, 0), (-1, 1))
    assert below.values[0, 0].tolist() == [[0.0, 0.0, 0.0], [0.0, 5.0, 6.0], [0.0, 8.0, 9.0]]
    assert below.values[1, 0].tolist() == [[10.0, 20.0, 30.0], [40.0, 50.0, 60.0], [70.0, 80.0, 90.0]]


def test_both_ways_to_convolve_agree() -> None:
    """Compares a signal in one map with the same signal in all maps, also for the few channels of an image."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 1, 3, 3, generator=generator).double()
    for channels_below in (3, 8):
        conv = nn.Conv2d(channels_below, 5, 3, stride=2, padding=1).double()
        alone = Signal(values, tops=(0, 1), lefts=(1, 0), maps=(4, 2))
        spread = torch.zeros(2, 5, 3, 3).double()
        spread[[0, 1], [4, 2]] = values[:, 0]
        among_all = Signal(spread, tops=(0, 1), lefts=(1, 0))
        torch.testing.assert_close(
            convolve_transposed(alone, conv, 7, 7).values, convolve_transposed(among_all, conv, 7, 7).values
        )
